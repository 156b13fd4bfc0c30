"""Code shared by all commands that run a Trainer: progress, interruption and figures."""

import json
import math
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments

from revformers.files import write_json
from revformers.training.history import Clock, loss_curve
from revformers.training.interruption import SaveOnSignal
from revformers.training.progress import ShowProgress
from revformers.training.recipe import TrainingSection
from revformers.training.run_directory import RunDirectory
from revformers.training.step_in_backward import StepInBackward


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


def finished_result(run: RunDirectory, checkpoint: Path, max_steps: int) -> RunResult | None:
    """Return the result of the run in `run` if no step is left to train, otherwise None; so a run can resume twice."""
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    if step < max_steps or not run.metrics.is_file():
        return None
    return RunResult(run.path, True, step, None, json.loads(run.metrics.read_text(encoding="utf-8")))


class NothingToTrainError(Exception):
    """Raised when the checkpoint to resume from is that of the last step."""


class StopAtLastStep(TrainerCallback):
    """Raises NothingToTrainError before an epoch that begins after the last step.

    A run can die between its last checkpoint and its figures. The Trainer checks the number of steps only after a
    step, so it would train one step too many.
    """

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Raise if no step is left; at this point the weights and the log are those of the checkpoint."""
        if state.global_step >= state.max_steps:
            raise NothingToTrainError


def train(
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

    """
    clock = Clock()
    progress = ShowProgress(console, clock, tokens_per_step)
    trainer.remove_callback(PrinterCallback)
    if section.optimizer_in_backward:
        trainer.add_callback(StepInBackward())
    with SaveOnSignal() as interruption:
        for callback in (clock, progress, interruption):
            trainer.add_callback(callback)
        trainer.add_callback(StopAtLastStep())
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except NothingToTrainError:
            trainer.is_in_train = False
        finally:
            progress.close()
    step = trainer.state.global_step
    if step < trainer.state.max_steps:
        return RunResult(run.path, False, step, interruption.received, {})
    return None


def tokens_in_step(arguments: TrainingArguments, block_length: int) -> int:
    """Return the tokens of one optimizer step, over all devices, if every sequence is a block."""
    sequences = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    return sequences * block_length


def finish(trainer: Trainer, run: RunDirectory, metrics: dict[str, Any]) -> RunResult:
    """Write the loss curve and the figures of a run whose model is saved, and return its result."""
    if trainer.is_world_process_zero():
        write_json(run.history, loss_curve(trainer.state))
        write_json(run.metrics, metrics)  # last, because its existence marks the run as finished
    return RunResult(run.path, True, trainer.state.global_step, None, metrics)


def run_metrics(trainer: Trainer, tokens: int) -> dict[str, Any]:
    """Return the figures of a finished run; losses in nats per token, times in seconds.

    Args:
        trainer: the Trainer after its last step.
        tokens: the number of training tokens.

    """
    curve = loss_curve(trainer.state)
    training_loss = [entry["loss"] for entry in curve if "loss" in entry][-1]
    validation_loss = [entry["eval_loss"] for entry in curve if "eval_loss" in entry][-1]
    seconds = curve[-1]["seconds"]
    return {
        "training_loss": training_loss,
        "validation_loss": validation_loss,
        "validation_perplexity": math.exp(validation_loss),
        "steps": trainer.state.global_step,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "revformers": version("revformers"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
