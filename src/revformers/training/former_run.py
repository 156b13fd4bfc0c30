"""The run that another one overwrites, which is kept until the new one has something to continue from."""

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from revformers.files import PARTIAL
from revformers.training.checkpoint_folders import CheckpointFolders
from revformers.training.seal import is_sealed

FOLDER = ".former-run"
"""The folder in a run directory that holds the former run."""


class FormerRun:
    """The former run in a run directory.

    It is moved into a folder by renaming its parts, its recipe last, and moved back with the recipe first. So whenever
    the process dies, the recipe tells what the other parts in the run directory belong to: those beside a former recipe
    are the new run's, and all parts without one in the folder are the former run's.

    Args:
        directory: the run directory, which this process has locked.
        names: what a run writes there besides checkpoints, the recipe last.

    """

    def __init__(self, directory: Path, names: tuple[str, ...]) -> None:
        self._directory = directory
        self._names = names
        self._folder = directory / FOLDER

    @property
    def kept(self) -> bool:
        """Whether there is a former run that has not been discarded."""
        return self._folder.is_dir()

    def set_aside(self) -> None:
        """Move the run in the run directory into the folder, if there is one."""
        parts = self._parts(self._directory)
        if parts:
            self._folder.mkdir(exist_ok=True)
            _move(parts, self._folder)

    def settle(self) -> bool:
        """Discard the former run if the new one has a checkpoint or a result, and put it back otherwise.

        Returns:
            Whether it was put back.

        """
        if not self.kept:
            return False
        recipe = self._folder / self._names[-1]
        if recipe.exists():
            if CheckpointFolders(self._directory).complete() or is_sealed(self._directory):
                self.discard()
                return False
            for part in self._parts(self._directory):
                _remove(part)
        _move(reversed(self._parts(self._folder)), self._directory)
        self._folder.rmdir()
        return True

    def discard(self) -> None:
        """Delete the former run, if there is one."""
        if self.kept:
            # Under a name that marks it as remains, in case this process is killed while it goes.
            doomed = Path(tempfile.mkdtemp(prefix=f"{FOLDER}{PARTIAL}", dir=self._directory))
            shutil.rmtree(self._folder.rename(doomed / FOLDER).parent)

    def _parts(self, folder: Path) -> list[Path]:
        checkpoints = CheckpointFolders(folder)
        named = [folder / name for name in self._names]
        return [*checkpoints.all(), *checkpoints.set_aside(), *filter(os.path.lexists, named)]


def _move(parts: Iterable[Path], folder: Path) -> None:
    for part in parts:
        part.rename(folder / part.name)


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part)
    else:
        part.unlink()
