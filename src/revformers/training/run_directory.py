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

from revformers.checkpoints.marks import ADAPTER_OF_RUN, MODEL_OF_RUN
from revformers.data.cache import file_digest
from revformers.errors import UserError, reason_of
from revformers.files import check_place, remove_partial
from revformers.private_api import is_lost_process
from revformers.training.changed_settings import RunRecipe, flat
from revformers.training.checkpoint_folders import PREFIX, PREFIX_OF_DAMAGED, CheckpointFolders, step_of
from revformers.training.former_run import FOLDER, FormerRun
from revformers.training.recorded_recipe import RecordedRecipe
from revformers.training.run_lock import RunLock
from revformers.training.seal import SEAL_NAME, facts_of, fault_of, is_sealed, seal

LEFT_ON_A_FULL_DISK = 2**20
"""Bytes left on a disk below which it is full; PyTorch's error for a file that it could not write does not say so."""

FACTS = ("run", "processes", "data", "inputs", "learning_rate", "unlogged_losses", "last_logged_step")
"""The facts in the seal of a checkpoint, without which a run cannot resume from it."""


class RunDirectory:
    """The paths of a run, and the lock on its directory, which the end of a ``with`` block releases.

    A run first claims its directory, before long work, and begins in it when it is about to write there.

    Attributes:
        path: the directory.
        checkpoints: the checkpoints in it.
        lock: the lock.

    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()  # as the Trainer does
        self.model = self.path / MODEL_OF_RUN
        self.adapter = self.path / ADAPTER_OF_RUN
        self.conversion = self.path / "conversion"
        self.metrics = self.path / "metrics.json"
        self.start = self.path / "start.json"
        self.history = self.path / "history.json"
        self.sample = self.path / "sample.txt"
        self.checkpoints = CheckpointFolders(self.path)
        self.lock = RunLock(self.path)
        self._recorded = RecordedRecipe(self.path)
        self.recipe = self._recorded.path
        self._results = (self.model, self.adapter, self.metrics, self.history)
        others = (self.conversion, self.start, self.sample, self.path / SEAL_NAME, self.recipe)
        self._names = tuple(part.name for part in (*self._results, *others))
        self._former = FormerRun(self.path, self._names)
        self._spares_former = False
        self._facts: dict[str, Any] = {}

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.lock.held:
                self._former.settle()
            if self._spares_former and error is not None:
                error.add_note(f"The former run is still in {self.path}.")
        finally:
            self.lock.release()
        if isinstance(error, Exception) and is_lost_process(error):
            raise UserError(f"Another process of the run has ended; {self.remedy()}.") from error

    def finish_checkpoint(self, step: int, facts: dict[str, Any], limit: int, best: str | None) -> None:
        """Seal a checkpoint with facts about the run, besides those that this object knows, and delete older ones.

        A run that this one overwrites goes then. See `CheckpointFolders.finish`.
        """
        self.checkpoints.finish(step, self._facts | facts, limit, best)
        self._discard_former()

    def finish(self, step: int) -> None:
        """Seal the results of a run that has ended after `step`; a run that it overwrites goes then."""
        checkpoint = self.checkpoints.of_step(step) / SEAL_NAME
        seal(self.path, self._results, checkpoint=file_digest(checkpoint) if checkpoint.is_file() else None)
        self._discard_former()

    def is_finished(self, checkpoint: Path, tell: Callable[[str], None]) -> bool:
        """Whether the directory holds, as they were saved, the results of the run that ended with `checkpoint`.

        Args:
            checkpoint: a whole checkpoint.
            tell: receives a line about a result that is damaged or missing.

        """
        if not is_sealed(self.path):
            return False
        if fault := fault_of(self.path):
            tell(f"{fault}: the run ends again from {checkpoint.name}.")
            return False
        return facts_of(self.path).get("checkpoint") == file_digest(checkpoint / SEAL_NAME)

    def writes_into(self, path: Path) -> bool:
        """Whether a run replaces the file `path`, or files in the directory `path`, or in one above it."""
        if self.path.resolve() not in path.resolve().parents:
            return False
        first = path.resolve().relative_to(self.path.resolve()).parts[0]
        return first in (*self._names, FOLDER) or first.startswith((PREFIX, PREFIX_OF_DAMAGED))

    def check_in_place(self) -> None:
        """Raise UserError if the directory that this object has locked was moved or deleted."""
        if self.lock.held and not self.lock.is_in_place():
            raise UserError(
                f"{self.path} is no longer the directory in which this run began: it was moved, deleted or replaced; "
                f"continue the run where its directory is now, with --resume and --output DIRECTORY."
            )

    def check_space(self, model: nn.Module) -> None:
        """Raise UserError if the trained weights of `model`, which the run will certainly write, do not fit."""
        size = sum(one.numel() * one.element_size() for one in model.parameters() if one.requires_grad)
        free = shutil.disk_usage(self.path).free
        if free < size:
            kept = " beside the run that is overwritten, which stays until the new one has a checkpoint"
            kept = kept if self._former.kept else ""
            raise UserError(
                f"The trained weights alone take {size / 2**20:,.0f} MiB, and {self.path} has {free / 2**20:,.0f} MiB "
                f"left{kept}; make room there, or change output."
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

        If the latest checkpoint is damaged, the one before it is taken, and the damaged one is set aside. A run that
        another one was overwriting when it was killed, before it had a checkpoint, is put back. Nothing else changes.

        Args:
            recipe: the recipe.
            resume: continue the run in the directory.
            overwrite: discard it.
            needs_best: whether the run will load its best checkpoint.
            processes: the number of processes of this run.
            data: returns a name for the content of its data, None if it has none; called last, as that may take long.
            tell: receives a line about a checkpoint that is damaged, and about a former run that is put back.

        Raises:
            UserError: if the recipe reads what the run replaces, if nothing can be written to the directory, if it
                holds a run and neither option is given, if another process uses it, if it holds files that no run
                wrote, if there is no checkpoint to resume from, or if the run there cannot be resumed with this recipe,
                this number of processes or these data.

        """
        if resume and overwrite:
            raise UserError("A run is either resumed or overwritten: give one of --resume and --overwrite.")
        self._check_sources(recipe)
        check_place(self.path, directory=True)
        if self.path.exists():
            self._acquire(tell)
        checkpoint = None
        if resume and not self.checkpoints.complete():
            raise UserError(f"{self.path} holds no checkpoint to resume from; leave out --resume to start there.")
        self._check_ours()
        self._check_free(resume or overwrite)
        self._spares_former = overwrite and self.recipe.exists()
        if resume:
            checkpoint = self.checkpoints.latest_whole(tell)
            self._check_seal(checkpoint)
            self._check_processes(checkpoint, processes)
            self._recorded.check_changes(recipe, step_of(checkpoint))
            if needs_best:
                self.checkpoints.check_best(checkpoint)
        self._facts = {"processes": processes, "data": data(), "inputs": {}}
        if checkpoint is not None:
            self._check_data(checkpoint)
        return checkpoint

    def check_inputs(self, checkpoint: Path | None, inputs: dict[str, str]) -> None:
        """Compare what the run reads besides its data with what it read before `checkpoint`, and remember it.

        Args:
            checkpoint: what `claim` returned.
            inputs: names for contents, under words for what has the content.

        Raises:
            UserError: if the content of one has changed.

        """
        before = {} if checkpoint is None else facts_of(checkpoint)["inputs"]
        for words, content in inputs.items():
            if before.get(words, content) != content:
                assert checkpoint is not None
                raise self._changed(words, checkpoint)
        self._facts["inputs"] = before | inputs

    def begin(self, recipe: RunRecipe, checkpoint: Path | None, *, overwrite: bool) -> None:
        """Record the recipe of a run that has claimed the directory, and move what is in its way.

        This is an existing run with `overwrite`, of which only files that a run writes are moved. It is deleted when
        the new one has a checkpoint, or put back where this object's ``with`` block ends before that. The remains of
        killed runs are removed.

        Args:
            recipe: the recipe.
            checkpoint: what `claim` returned.
            overwrite: discard the run in the directory.

        Raises:
            UserError: if another run has begun in the directory since `claim`, which did not exist then.

        """
        if not self.lock.held:
            self.path.mkdir(parents=True, exist_ok=True)
            self._acquire()
            self._check_ours()
            self._check_free(overwrite)
        if overwrite:
            self._former.set_aside()
        (self.path / SEAL_NAME).unlink(missing_ok=True)  # the results in the directory are those of earlier steps
        remove_partial(self.path)
        self.checkpoints.remove_unfinished()
        if checkpoint is None:
            self._recorded.write(recipe)
        else:
            self._recorded.follow(recipe, step_of(checkpoint))
        self._facts["run"] = self._recorded.run_identity()

    @contextmanager
    def saving(self, target: Path) -> Iterator[None]:
        """Turn an error while `target` is saved into UserError, which says from where the run goes on."""
        self.check_in_place()
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            self.refuse_save(target, error)

    def refuse_save(self, target: Path, error: Exception) -> None:
        """Raise UserError for an error while `target` was saved; remove a checkpoint that is not complete.

        The end of another process is no fault of the saving: its error passes.
        """
        if is_lost_process(error):
            raise error
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

    def _discard_former(self) -> None:
        self._former.discard()
        self._spares_former = False

    def _acquire(self, tell: Callable[[str], None] = lambda line: None) -> None:
        """Lock the directory, and settle what a killed run that was overwriting another one has left."""
        self.lock.acquire()
        if self._former.settle():
            tell(f"The former run is back in {self.path}, because the one that overwrote it saved no checkpoint.")

    def _check_sources(self, recipe: RunRecipe) -> None:
        """Raise UserError if the recipe names a file or a directory that the run replaces."""
        for name, value in flat(recipe.to_dict()).items():
            if isinstance(value, str) and value and name != "output":
                path = Path(value).expanduser()
                if self.writes_into(path) and path.exists():
                    raise UserError(f"The run would replace its {name} {value} in {self.path}; change output.")

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

    def _check_seal(self, checkpoint: Path) -> None:
        """Raise UserError for a checkpoint of another run, or one that another version of revformers has sealed."""
        facts = facts_of(checkpoint)
        if missing := [name for name in FACTS if name not in facts]:
            raise UserError(
                f"{checkpoint} was saved by another version of revformers, without {missing[0]!r} in its {SEAL_NAME}; "
                f"resume it with that version, or give --overwrite to start again."
            )
        if facts["run"] != self._recorded.run_identity():
            raise UserError(
                f"{checkpoint} belongs to another run than {self.recipe}; move it out of the directory, or put the "
                f"recipe.yaml of its run there."
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
            raise self._changed("data", checkpoint)

    def _changed(self, words: str, checkpoint: Path) -> UserError:
        return UserError(
            f"The {words} of the run in {self.path} changed after {checkpoint.name} was saved, under the same name; "
            f"restore what was there, or train elsewhere with --output DIRECTORY."
        )
