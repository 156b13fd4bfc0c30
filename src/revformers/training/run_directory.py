"""The directory of a run: its files, and the checks before a run starts or resumes."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError
from torch import nn

from revformers.errors import UserError, reason_of
from revformers.files import check_place, remove_partial
from revformers.training.changed_settings import RunRecipe
from revformers.training.checkpoint_folders import PREFIX, CheckpointFolders, step_of
from revformers.training.recorded_recipe import RecordedRecipe
from revformers.training.run_lock import RunLock
from revformers.training.seal import facts_of

LEFT_ON_A_FULL_DISK = 2**20
"""Bytes left on a disk below which it is full; PyTorch's error for a file that it could not write does not say so."""


class RunDirectory:
    """The paths of a run, and the lock on its directory, which the end of a ``with`` block releases.

    A run first claims its directory, before long work, and begins in it when nothing else can refuse the run.

    Attributes:
        path: the directory.
        checkpoints: the checkpoints in it.
        lock: the lock.

    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()  # as the Trainer does
        self.model = self.path / "model"
        self.adapter = self.path / "adapter"
        self.conversion = self.path / "conversion"
        self.metrics = self.path / "metrics.json"
        self.start = self.path / "start.json"
        self.history = self.path / "history.json"
        self.sample = self.path / "sample.txt"
        self.checkpoints = CheckpointFolders(self.path)
        self.lock = RunLock(self.path)
        self._recorded = RecordedRecipe(self.path)
        self.recipe = self._recorded.path
        self._facts: dict[str, Any] = {}

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lock.release()

    def finish_checkpoint(self, step: int, facts: dict[str, Any], limit: int, best: str | None) -> None:
        """Seal a checkpoint with facts about the run, besides those that `claim` was given, and delete older ones.

        See `CheckpointFolders.finish`.
        """
        self.checkpoints.finish(step, self._facts | facts, limit, best)

    def writes_into(self, path: Path) -> bool:
        """Whether a run replaces files in the directory `path`, or in one above it."""
        if self.path.resolve() not in path.resolve().parents:
            return False
        first = path.resolve().relative_to(self.path.resolve()).parts[0]
        return first in (self.model.name, self.adapter.name, self.conversion.name) or first.startswith(PREFIX)

    def check_space(self, model: nn.Module) -> None:
        """Raise UserError if the trained weights of `model`, which the run will certainly write, do not fit."""
        size = sum(one.numel() * one.element_size() for one in model.parameters() if one.requires_grad)
        free = shutil.disk_usage(self.path).free
        if free < size:
            raise UserError(
                f"The trained weights alone take {size / 2**20:,.0f} MiB, and {self.path} has {free / 2**20:,.0f} MiB "
                f"left; make room there, or change output."
            )

    def claim(
        self,
        recipe: RunRecipe,
        *,
        resume: bool,
        overwrite: bool,
        needs_best: bool,
        processes: int,
        data: Callable[[], str | None],
        tell: Callable[[str], None],
    ) -> Path | None:
        """Lock the directory if it exists, and return the checkpoint to start from, or None.

        If the latest checkpoint is damaged, the one before it is taken, and the damaged one is set aside. Nothing else
        changes.

        Args:
            recipe: the recipe.
            resume: continue the run in the directory.
            overwrite: discard it.
            needs_best: whether the run will load its best checkpoint.
            processes: the number of processes of this run.
            data: returns a name for the content of its data, None if it has none; called last, as that may take long.
            tell: receives a line about a checkpoint that is damaged.

        Raises:
            UserError: if nothing can be written to the directory, if it holds a run and neither option is given, if
                another process uses it, if it holds files that no run wrote, if there is no checkpoint to resume from,
                or if the run there cannot be resumed with this recipe, this number of processes or these data.

        """
        if resume and overwrite:
            raise UserError("A run is either resumed or overwritten: give one of --resume and --overwrite.")
        check_place(self.path, directory=True)
        if resume and not self.checkpoints.complete():
            raise UserError(f"{self.path} holds no checkpoint to resume from; leave out --resume to start there.")
        checkpoint = None
        if self.path.exists():
            self.lock.acquire()
            self._check_ours()
            self._check_free(resume or overwrite)
        if resume:
            checkpoint = self.checkpoints.latest_whole(tell)
            self._check_processes(checkpoint, processes)
            self._recorded.check_changes(recipe, step_of(checkpoint))
            if needs_best:
                self.checkpoints.check_best(checkpoint)
        self._facts = {"processes": processes, "data": data()}
        if checkpoint is not None:
            self._check_data(checkpoint)
        return checkpoint

    def begin(self, recipe: RunRecipe, checkpoint: Path | None, *, overwrite: bool) -> None:
        """Record the recipe of a run that has claimed the directory, and remove what is in its way.

        This is an existing run with `overwrite`, of which only files that a run writes are removed, and the remains of
        killed runs.

        Args:
            recipe: the recipe.
            checkpoint: what `claim` returned.
            overwrite: discard the run in the directory.

        Raises:
            UserError: if another run has begun in the directory since `claim`, which did not exist then.

        """
        if not self.lock.held:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
            self._check_ours()
            self._check_free(overwrite)
        if overwrite:
            self._clear()
        remove_partial(self.path)
        self.checkpoints.remove_unfinished()
        if checkpoint is None:
            self._recorded.write(recipe)
        else:
            self._recorded.follow(recipe, step_of(checkpoint))

    @contextmanager
    def saving(self, target: Path) -> Iterator[None]:
        """Turn an error while `target` is saved into UserError, which says from where the run goes on."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            self.refuse_save(target, error)

    def refuse_save(self, target: Path, error: Exception) -> None:
        """Raise UserError for an error while `target` was saved; remove a checkpoint that is not complete."""
        free = shutil.disk_usage(self.path).free
        if target in self.checkpoints.all():
            shutil.rmtree(target, ignore_errors=True)
        reason = "its disk is full" if free < LEFT_ON_A_FULL_DISK else reason_of(error)
        raise UserError(f"Saving {target} failed: {reason}; {self.remedy()}.") from error

    def remedy(self) -> str:
        """Return the words, for the end of a message, that say from where the run goes on."""
        kept = self.checkpoints.complete()
        if not kept:
            return "the run has no earlier checkpoint and must start again"
        return f"put that right and give --resume, which continues from {kept[-1].name}"

    def _check_ours(self) -> None:
        """Raise UserError if files that no run wrote stand where this run would write."""
        places = (*self.checkpoints.all(), self.model, self.adapter, self.conversion)
        for place in places:
            if place.is_symlink():
                raise UserError(
                    f"{place} is a symbolic link, which no run writes; remove it, or choose another directory with "
                    f"--output DIRECTORY."
                )
        if self.recipe.exists():
            self._recorded.check_author()
        elif found := [place for place in (*places, self.metrics, self.history, self.sample) if place.exists()]:
            raise UserError(
                f"{found[0]} is there, but no recipe.yaml of a run that wrote it, so it stays; choose another "
                f"directory with --output DIRECTORY."
            )

    def _check_free(self, allowed: bool) -> None:
        """Raise UserError if the directory holds a run, unless one is allowed there."""
        if not allowed and any(map(os.path.lexists, (*self.checkpoints.complete(), self.model, self.adapter))):
            raise UserError(
                f"{self.path} already holds a run; give --resume to continue it, --output DIRECTORY to keep it and "
                f"train elsewhere, or --overwrite to discard it."
            )

    def _check_processes(self, checkpoint: Path, processes: int) -> None:
        """Raise UserError for another number of processes: each has a random state, and takes a part of each batch."""
        before = facts_of(checkpoint)["processes"]
        if before != processes:
            command = (
                f"torchrun --nproc-per-node {before}" if before > 1 else "one, without torchrun or accelerate launch"
            )
            raise UserError(
                f"The run in {self.path} was started with {before} process{'es' if before > 1 else ''}, not "
                f"{processes}, on which its batches and random numbers depend; resume it with {command}."
            )

    def _check_data(self, checkpoint: Path) -> None:
        """Raise UserError for data whose content has changed: the run would go on at another place in other text."""
        if facts_of(checkpoint)["data"] != self._facts["data"]:
            raise UserError(
                f"The data of the run in {self.path} have changed since {checkpoint.name} was saved, under the same "
                f"name; restore them, or train elsewhere with --output DIRECTORY."
            )

    def _clear(self) -> None:
        """Remove the run; the recipe last, as it marks the rest as ours."""
        checkpoints = (*self.checkpoints.all(), *self.checkpoints.set_aside())
        for directory in (*checkpoints, self.model, self.adapter, self.conversion):
            if directory.is_dir():
                shutil.rmtree(directory)
        for file in (self.metrics, self.start, self.history, self.sample, self.recipe):
            file.unlink(missing_ok=True)
