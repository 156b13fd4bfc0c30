"""Code shared by all commands that run a Trainer: progress, interruption and figures."""

import json
import math
import platform
import socket
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import gather_object
from rich.console import Console
from safetensors import SafetensorError
from transformers import PrinterCallback, Trainer, TrainingArguments

from revformers.data.section import DataSection
from revformers.data.sources import content_of
from revformers.errors import UserError
from revformers.files import write_json
from revformers.private_api import load_best_model
from revformers.training.checkpoint_folders import step_of
from revformers.training.console import say, signs_of_life
from revformers.training.divergence import StopAfterDivergence
from revformers.training.history import Clock, LogLastStep, loss_curve
from revformers.training.interruption import SaveOnSignal
from revformers.training.main_process import on_main_process, refuse_once
from revformers.training.progress import ShowProgress
from revformers.training.recipe import TrainingSection
from revformers.training.resuming import FollowRecipe, KeepCheckpoints, NothingToTrainError, StopAtLastStep
from revformers.training.run_directory import RunDirectory
from revformers.training.step_in_backward import StepInBackward

SECONDS_TO_APPEAR = 60.0
"""How long a network file system may hide from one host what another has written; the habit of NFS for directories."""


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        directory: the run directory.
        finished: False after a signal; the run can then be resumed.
        step: the last optimizer step.
        signal: number of the signal that ended the run, or None.
        metrics: the content of metrics.json; empty for an interrupted run.

    """

    directory: Path
    finished: bool
    step: int
    signal: int | None
    metrics: dict[str, Any]


def claim_directory(
    run: RunDirectory, recipe: Any, data: DataSection, console: Console, *, resume: bool, overwrite: bool
) -> tuple[Path | None, RunResult | None]:
    """Let the main process claim the run directory; call it before long work.

    Returns:
        The checkpoint to start from, and the result if the run there is finished.

    Raises:
        UserError: see `RunDirectory.claim` and `on_main_process`.

    """

    def claim() -> tuple[Path | None, RunResult | None]:
        checkpoint = run.claim(
            recipe,
            resume=resume,
            overwrite=overwrite,
            needs_best=bool(recipe.training.arguments.get("load_best_model_at_end")),
            processes=PartialState().num_processes,
            data=lambda: content_of(data),
            tell=lambda line: say(console, line),
        )
        if checkpoint is None or (step := step_of(checkpoint)) != recipe.training.max_steps:
            return checkpoint, None
        if not run.is_finished(checkpoint, lambda line: say(console, line)):
            return checkpoint, None
        return checkpoint, RunResult(run.path, True, step, None, json.loads(run.metrics.read_text(encoding="utf-8")))

    with signs_of_life(console, "checking the run directory and the data"):
        return on_main_process(claim)


def begin_in_directory(run: RunDirectory, recipe: Any, checkpoint: Path | None, *, overwrite: bool) -> None:
    """Let the main process begin the run in the directory that it has claimed, and the others look for it there.

    Raises:
        UserError: see `RunDirectory.begin` and `on_main_process`; also if a process does not see the directory.

    """

    def begin() -> dict[str, object] | None:
        run.begin(recipe, checkpoint, overwrite=overwrite)
        return run.lock.owner()

    owner = on_main_process(begin)
    until = time.monotonic() + SECONDS_TO_APPEAR
    while run.lock.owner() != owner and time.monotonic() < until:
        time.sleep(0.1)
    blind = gather_object([None if run.lock.owner() == owner else socket.gethostname()])
    hosts = sorted({host for host in blind if host is not None})
    if hosts:
        refuse_once(
            f"{run.path} on {', '.join(hosts)} is not the directory of that name on {socket.gethostname()}, where the "
            f"run has begun; choose one that all its hosts share, with --output DIRECTORY."
        )


def train_to_end(
    trainer: Trainer,
    run: RunDirectory,
    checkpoint: Path | None,
    console: Console,
    tokens_per_step: int | None,
    section: TrainingSection,
) -> RunResult | None:
    """Train to the end, from `checkpoint` if given.

    Args:
        trainer: the Trainer, with its model and data.
        run: the run directory.
        checkpoint: the checkpoint to resume from.
        console: where to show progress.
        tokens_per_step: tokens of one optimizer step, over all devices; None if the Trainer counts them.
        section: the training section of the recipe.

    Returns:
        The result if a signal ended the run before its last step, otherwise None.

    Raises:
        UserError: if the weights will not fit on the disk, a checkpoint could not be written, that to resume from
            holds code, or the run diverges.

    """
    on_main_process(lambda: run.check_space(trainer.model))
    clock = Clock()
    progress = ShowProgress(console, clock, tokens_per_step)
    trainer.remove_callback(PrinterCallback)
    trainer.args.save_total_limit = None  # KeepCheckpoints deletes them
    if section.optimizer_in_backward:
        trainer.add_callback(StepInBackward())
    with SaveOnSignal() as interruption:
        for callback in (
            LogLastStep(),
            clock,
            progress,
            interruption,
            StopAfterDivergence(run, trainer),
            KeepCheckpoints(run, section.save_total_limit, trainer),
        ):
            trainer.add_callback(callback)
        if checkpoint is not None:
            trainer.add_callback(FollowRecipe(run, checkpoint, trainer))
        trainer.add_callback(StopAtLastStep())
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except NothingToTrainError:
            _end_training(trainer)
        except UnpicklingError as error:
            if checkpoint is None:
                raise
            raise UserError(
                f"{checkpoint} holds a pickle with more than tensors, which may run code and is not loaded; move it "
                f"out of the run to continue from an earlier checkpoint."
            ) from error
        except (OSError, RuntimeError, SafetensorError) as error:
            unfinished = run.checkpoints.of_step(trainer.state.global_step)
            if unfinished.is_dir() and unfinished not in run.checkpoints.complete():
                run.refuse_save(unfinished, error)
            raise
        finally:
            progress.close()
    step = trainer.state.global_step
    if step < trainer.state.max_steps:
        return RunResult(run.path, False, step, interruption.received, {})
    return None


def _end_training(trainer: Trainer) -> None:
    """Do what the Trainer does after its last step, which `NothingToTrainError` has skipped."""
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint:
        load_best_model(trainer)
    trainer.control = trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
    trainer.is_in_train = False  # otherwise an evaluation takes itself for one within the training


def tokens_in_step(arguments: TrainingArguments, block_length: int) -> int:
    """Return the tokens of one optimizer step, over all devices, if every sequence is a block."""
    sequences = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    return sequences * block_length


def finish(trainer: Trainer, run: RunDirectory, metrics: dict[str, Any]) -> RunResult:
    """Write the loss curve and the figures of a run whose model is saved, and return its result."""
    if trainer.is_world_process_zero():
        write_json(run.history, loss_curve(trainer.state))
        write_json(run.metrics, metrics)
        run.finish(trainer.state.global_step)
    return RunResult(run.path, True, trainer.state.global_step, None, metrics)


def run_metrics(trainer: Trainer, tokens: int) -> dict[str, Any]:
    """Return the figures of a finished run; losses in nats per token, times in seconds.

    The validation loss is that of the model that is saved: with load_best_model_at_end that of `best_step`.

    Args:
        trainer: the Trainer after its last step.
        tokens: the number of training tokens.

    """
    curve = loss_curve(trainer.state)
    training_loss = [entry["loss"] for entry in curve if "loss" in entry][-1]
    validation_losses = {entry["step"]: entry["eval_loss"] for entry in curve if "eval_loss" in entry}
    state = trainer.state
    best = trainer.args.load_best_model_at_end and state.best_model_checkpoint
    best_step = step_of(Path(best)) if best else None
    validation_loss = validation_losses[best_step or max(validation_losses)]
    seconds = curve[-1]["seconds"]
    return {
        "training_loss": training_loss,
        "validation_loss": validation_loss,
        "validation_perplexity": _exp(validation_loss),
        "steps": state.global_step,
        **({"best_step": best_step} if best_step else {}),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "revformers": version("revformers"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
