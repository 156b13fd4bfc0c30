"""The directory of a run: its files, and the checks before a run starts or resumes."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from safetensors import SafetensorError
from torch import nn

from revformers.errors import UserError, as_user_error, reason_of
from revformers.files import check_place, remove_partial, write_text
from revformers.training.changed_settings import NOTE, RunRecipe, compare_recipes
from revformers.training.run_lock import RunLock
from revformers.training.seal import SEAL, facts_of, fault_of, is_sealed, seal

HEADER = "# The recipe of the run in this directory, written by revformers.\n"

FULL = 2**20
"""Bytes left on a disk below which it is full; PyTorch's error for a file that it could not write does not say so."""

DAMAGED = "damaged-"
"""What precedes the name of a checkpoint that was set aside."""


class RunDirectory:
    """The paths of a run, and the lock on its directory, which the end of a ``with`` block releases.

    Attributes:
        path: the directory.

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
        self.recipe = self.path / "recipe.yaml"
        self._lock = RunLock(self.path)
        self._facts: dict[str, Any] = {}

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def checkpoints(self) -> list[Path]:
        """Return the complete checkpoints, the latest last. One without a seal was not finished."""
        return [folder for folder in self._checkpoint_folders() if is_sealed(folder)]

    def checkpoint(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step."""
        return self.path / f"checkpoint-{step}"

    def finish_checkpoint(self, step: int, facts: dict[str, Any], limit: int, best: str | None) -> None:
        """Seal a checkpoint that is complete, and only then delete older ones.

        Args:
            step: its step.
            facts: facts about the run, besides those that `prepare` was given.
            limit: the number of checkpoints to keep.
            best: another checkpoint to keep; it counts.

        """
        seal(self.checkpoint(step), **self._facts | facts)
        complete = self.checkpoints()
        removable = [folder for folder in complete[:-1] if best is None or folder != Path(best)]
        for folder in removable[: max(len(complete) - limit, 0)]:
            (folder / SEAL).unlink()  # a kill while the rest goes must not leave what looks complete
            shutil.rmtree(folder)

    def writes_into(self, path: Path) -> bool:
        """Whether a run replaces files in the directory `path`, or in one above it."""
        if self.path.resolve() not in path.resolve().parents:
            return False
        first = path.resolve().relative_to(self.path.resolve()).parts[0]
        return first in (self.model.name, self.adapter.name, self.conversion.name) or first.startswith("checkpoint-")

    def check_space(self, model: nn.Module) -> None:
        """Raise UserError if the trained weights of `model`, which the run will certainly write, do not fit."""
        size = sum(one.numel() * one.element_size() for one in model.parameters() if one.requires_grad)
        free = shutil.disk_usage(self.path).free
        if free < size:
            raise UserError(
                f"The trained weights alone take {size / 2**20:,.0f} MiB, and {self.path} has {free / 2**20:,.0f} MiB "
                f"left; make room there, or change output."
            )

    def prepare(
        self,
        recipe: RunRecipe,
        *,
        resume: bool,
        overwrite: bool,
        processes: int = 1,
        data: str | None = None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> Path | None:
        """Lock and prepare the directory for `recipe`, and return the checkpoint to start from, or None.

        `overwrite` removes an existing run, and only the files that a run writes. The remains of killed runs are
        removed. If the latest checkpoint is damaged, the one before it is taken, and the damaged one is set aside.

        Args:
            recipe: the recipe.
            resume: continue the run in the directory.
            overwrite: discard it.
            processes: the number of processes of this run.
            data: a name for the content of its data; None if it has none.
            tell: receives a line about a checkpoint that is damaged.

        Raises:
            UserError: if the directory holds a run and neither option is given, if another process uses it, if it holds
                files that no run wrote, if there is no checkpoint to resume from, or if the run there cannot be resumed
                with this recipe, this number of processes or these data.

        """
        if resume and overwrite:
            raise UserError("A run is either resumed or overwritten: give one of --resume and --overwrite.")
        check_place(self.path, directory=True)
        if resume and not self.checkpoints():
            raise UserError(f"{self.path} holds no checkpoint to resume from; leave out --resume to start there.")
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        self._facts = {"processes": processes, "data": data}
        self._check_ours()
        if resume:
            self._remove_remains()
            checkpoint = self._latest_whole(tell)
            self._check_processes(checkpoint, processes)
            self._follow(recipe, checkpoint, data)
            return checkpoint
        if overwrite:
            self._clear()
        elif any(map(os.path.lexists, (*self.checkpoints(), self.model, self.adapter))):
            raise UserError(
                f"{self.path} already holds a run; give --resume to continue it, --output DIRECTORY to keep it and "
                f"train elsewhere, or --overwrite to discard it."
            )
        self._remove_remains()
        self._write_recipe(recipe.to_dict(), [])
        return None

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
        if target in self._checkpoint_folders():
            shutil.rmtree(target, ignore_errors=True)
        reason = "its disk is full" if free < FULL else reason_of(error)
        raise UserError(f"Saving {target} failed: {reason}; {self.remedy()}.") from error

    def remedy(self) -> str:
        """Return the words, for the end of a message, that say from where the run goes on."""
        kept = self.checkpoints()
        if not kept:
            return "the run has no earlier checkpoint and must start again"
        return f"put that right and give --resume, which continues from {kept[-1].name}"

    def _checkpoint_folders(self) -> list[Path]:
        folders = (folder for folder in self.path.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", folder.name))
        return sorted(folders, key=_step)

    def _check_ours(self) -> None:
        """Raise UserError if files that no run wrote stand where this run would write."""
        places = (*self._checkpoint_folders(), self.model, self.adapter, self.conversion)
        for place in places:
            if place.is_symlink():
                raise UserError(
                    f"{place} is a symbolic link, which no run writes; remove it, or choose another directory with "
                    f"--output DIRECTORY."
                )
        if self.recipe.exists():
            if not self.recipe.read_text(encoding="utf-8").startswith(HEADER):
                raise UserError(
                    f"{self.recipe} was not written by a run of this version of revformers, and stays; choose another "
                    f"directory with --output DIRECTORY."
                )
        elif found := [place for place in (*places, self.metrics, self.history, self.sample) if place.exists()]:
            raise UserError(
                f"{found[0]} is there, but no recipe.yaml of a run that wrote it, so it stays; choose another "
                f"directory with --output DIRECTORY."
            )

    def _remove_remains(self) -> None:
        """Remove what killed runs left: files that were being written, and checkpoints that were not finished."""
        remove_partial(self.path)
        for folder in self._checkpoint_folders():
            if not is_sealed(folder):
                shutil.rmtree(folder)

    def _latest_whole(self, tell: Callable[[str], None]) -> Path:
        """Return the latest checkpoint that is as it was saved, and set later ones aside."""
        checkpoints = self.checkpoints()
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
            aside = damaged.with_name(DAMAGED + damaged.name)
            if aside.exists():
                shutil.rmtree(aside)
            damaged.rename(aside)
            tell(f"{fault}: {damaged.name} is set aside as {aside.name}, and the run continues from {checkpoint.name}.")
        return checkpoint

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

    def _check_data(self, checkpoint: Path, data: str | None) -> None:
        """Raise UserError for data whose content has changed: the run would go on at another place in other text."""
        if facts_of(checkpoint).get("data", data) != data:
            raise UserError(
                f"The data of the run in {self.path} have changed since {checkpoint.name} was saved, under the same "
                f"name; restore them, or train elsewhere with --output DIRECTORY."
            )

    def _follow(self, recipe: RunRecipe, checkpoint: Path, data: str | None) -> None:
        """Write the recipe of a resumed run; raise UserError if it cannot follow the changes in it or in its data."""
        with as_user_error(f"{self.recipe} is damaged", (yaml.YAMLError, ValueError)):
            before = yaml.safe_load(self.recipe.read_text(encoding="utf-8"))
        if not isinstance(before, dict):
            raise UserError(f"{self.recipe} is damaged: it holds no recipe; restore it, or give --overwrite.")
        changed, notes = compare_recipes(self.path, before, recipe, _step(checkpoint))
        self._check_data(checkpoint, data)
        if changed:
            self._write_recipe(recipe.to_dict(), notes)

    def _write_recipe(self, values: dict[str, Any], notes: list[str]) -> None:
        """Write recipe.yaml; it keeps the notes on values that were used in earlier steps, and gets new ones."""
        kept = []
        if self.recipe.is_file():
            lines = self.recipe.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.startswith(NOTE)]
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        write_text(self.recipe, "".join([HEADER, *kept, *notes, text]))

    def _clear(self) -> None:
        """Remove the run; the recipe last, as it marks the rest as ours."""
        aside = self.path.glob(f"{DAMAGED}checkpoint-*")
        for directory in (*self._checkpoint_folders(), *aside, self.model, self.adapter, self.conversion):
            if directory.is_dir():
                shutil.rmtree(directory)
        for file in (self.metrics, self.start, self.history, self.sample, self.recipe):
            file.unlink(missing_ok=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))
