"""The checkpoints in a run directory: which are complete, which are whole, and which go when there are newer ones."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from revformers.errors import UserError
from revformers.training.seal import SEAL_NAME, fault_of, is_sealed, seal

PREFIX = "checkpoint-"
"""What precedes the step in the name of a checkpoint of the Trainer."""

PREFIX_OF_DAMAGED = "damaged-"
"""What precedes the name of a checkpoint that was set aside."""


def step_of(checkpoint: Path) -> int:
    """Return the step of the checkpoint in a folder."""
    return int(checkpoint.name.removeprefix(PREFIX))


class CheckpointFolders:
    """The checkpoints in a run directory.

    Args:
        directory: the run directory.

    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def of_step(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step."""
        return self._directory / f"{PREFIX}{step}"

    def all(self) -> list[Path]:
        """Return the folders of all checkpoints, the latest last."""
        named = (path for path in self._directory.glob(f"{PREFIX}*") if re.fullmatch(rf"{PREFIX}\d+", path.name))
        return sorted(named, key=step_of)

    def complete(self) -> list[Path]:
        """Return the complete checkpoints, the latest last. One without a seal was not finished."""
        return [folder for folder in self.all() if is_sealed(folder)]

    def set_aside(self) -> list[Path]:
        """Return the damaged checkpoints that `latest_whole` has set aside."""
        return list(self._directory.glob(f"{PREFIX_OF_DAMAGED}{PREFIX}*"))

    def finish(self, step: int, facts: dict[str, Any], limit: int, best: str | None) -> None:
        """Seal a checkpoint that is complete, and only then delete older ones.

        Args:
            step: its step.
            facts: facts about the run.
            limit: the number of checkpoints to keep.
            best: another checkpoint to keep; it counts.

        """
        seal(self.of_step(step), **facts)
        complete = self.complete()
        removable = [folder for folder in complete[:-1] if best is None or folder != Path(best)]
        for folder in removable[: max(len(complete) - limit, 0)]:
            (folder / SEAL_NAME).unlink()  # a kill while the rest goes must not leave what looks complete
            shutil.rmtree(folder)

    def remove_unfinished(self) -> None:
        """Remove the checkpoints that killed runs were writing."""
        for folder in self.all():
            if not is_sealed(folder):
                shutil.rmtree(folder)

    def latest_whole(self, tell: Callable[[str], None]) -> Path:
        """Return the latest checkpoint that is as it was saved, and set later ones aside.

        Args:
            tell: receives a line about each of those.

        Raises:
            UserError: if all checkpoints are damaged.

        """
        checkpoints = self.complete()
        faults = {}
        for checkpoint in reversed(checkpoints):
            fault = fault_of(checkpoint)
            if fault is None:
                break
            faults[checkpoint] = fault
        else:
            raise UserError(
                f"{faults[checkpoints[-1]]}, and no older checkpoint is whole; restore it from a copy, or give "
                f"--overwrite to start again."
            )
        for damaged, fault in faults.items():
            aside = damaged.with_name(PREFIX_OF_DAMAGED + damaged.name)
            if aside.exists():
                shutil.rmtree(aside)
            damaged.rename(aside)
            tell(f"{fault}: {damaged.name} is set aside as {aside.name}, and the run continues from {checkpoint.name}.")
        return checkpoint

    def best_of(self, checkpoint: Path) -> Path | None:
        """Return the best checkpoint up to a whole one, which names it by the path of its run at that time, if any."""
        named = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["best_model_checkpoint"]
        return self._directory / Path(named).name if named else None

    def check_best(self, checkpoint: Path) -> None:
        """Raise UserError if the best checkpoint, which a whole one names, is missing or damaged."""
        best = self.best_of(checkpoint)
        if best not in (None, checkpoint) and (fault := fault_of(best)):
            raise UserError(
                f"{fault}; load_best_model_at_end needs {best.name}, the best checkpoint so far: restore it from a "
                f"copy, or give --overwrite to start again."
            )
