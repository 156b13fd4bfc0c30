"""What every command that runs a Trainer shares: its arguments, its progress, its interruption and its figures."""

import dataclasses
import json
import math
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from rich.console import Console
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments

from revformers.errors import UserError, as_user_error
from revformers.files import write_json
from revformers.training.history import Clock, loss_curve
from revformers.training.interruption import SaveOnSignal
from revformers.training.progress import ShowProgress
from revformers.training.recipe import TrainerSection, TrainingSection
from revformers.training.recipe_file import suggestion
from revformers.training.run_directory import RunDirectory
from revformers.training.step_in_backward import StepInBackward, check_step_in_backward

Arguments = TypeVar("Arguments", bound=TrainingArguments)


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        directory: the run directory.
        finished: False after a signal, when the run can be resumed.
        step: the optimizer step that was reached.
        signal: number of the signal that ended the run, None without one.
        metrics: what metrics.json holds; empty for a run that was interrupted.

    """

    directory: Path
    finished: bool
    step: int
    signal: int | None
    metrics: dict[str, Any]


def trainer_arguments(
    section: TrainingSection, output: str, activations: str, kind: type[Arguments], **fixed: Any
) -> Arguments:
    """Return the Trainer's arguments for the training section of a recipe.

    Args:
        section: the section.
        output: the run directory.
        activations: the dotted name of the recipe's field that decides on activation checkpointing, for messages.
        kind: TrainingArguments or a subclass of it.
        fixed: further arguments, which the section may not set.

    Raises:
        UserError: for an argument that the Trainer does not have, that a recipe sets elsewhere, or a bad value.

    """
    owned = dict.fromkeys(fixed, "leave it out, the rest of the recipe decides it") | {
        "output_dir": "set output instead",
        "activation_checkpointing": f"set {activations} to checkpoint instead",
        "gradient_checkpointing": f"set {activations} to checkpoint instead",
        "resume_from_checkpoint": "give --resume instead",
        "bf16": "set training.precision instead",
        "fp16": "set training.precision instead",
    }
    known = [field.name for field in dataclasses.fields(kind)]
    for name in section.arguments:
        if name in owned:
            raise UserError(f"training.arguments cannot set {name!r}; {owned[name]}.")
        if name not in known:
            raise UserError(f"training.arguments has no {name!r}{suggestion(name, known)}")
    values = {
        "output_dir": output,
        "bf16": section.precision == "bfloat16",
        "fp16": section.precision == "float16",
        "eval_strategy": "steps",
        "logging_first_step": True,
        "prediction_loss_only": True,  # otherwise an evaluation would keep the logits of every token
        "remove_unused_columns": False,  # the data sets hold nothing that harms
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "disable_tqdm": True,  # ShowProgress takes its place
        "report_to": "none",
        **{field.name: getattr(section, field.name) for field in dataclasses.fields(TrainerSection)},
        **section.arguments,
        **fixed,
    }
    with as_user_error("The Trainer refuses the training section", (ImportError, TypeError, ValueError)):
        arguments = kind(**values)
    if section.optimizer_in_backward:
        check_step_in_backward(arguments)
    return arguments


def finished_result(run: RunDirectory, checkpoint: Path, max_steps: int) -> RunResult | None:
    """Return the result of the run in `run` if there is no step left to train, so that resuming twice does no harm."""
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    if step < max_steps or not run.metrics.is_file():
        return None
    return RunResult(run.path, True, step, None, json.loads(run.metrics.read_text(encoding="utf-8")))


class NothingToTrainError(Exception):
    """The checkpoint that was resumed from is that of the last step."""


class StopAtLastStep(TrainerCallback):
    """Raises NothingToTrainError before an epoch that begins beyond the last step.

    A run can die between its last checkpoint and its figures. The Trainer looks at the number of steps only after a
    step, so it would take one more.
    """

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Raise where no step is left; by now the weights and the log are those of the checkpoint."""
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
    """Train to the end, from `checkpoint` where there is one.

    Args:
        trainer: with its model and data.
        run: the run directory.
        checkpoint: the checkpoint to resume from.
        console: where to show progress.
        tokens_per_step: tokens of one optimizer step, over all devices; None where the Trainer counts them.
        section: the training section of the recipe.

    Returns:
        The result of a run that a signal ended before its last step, otherwise None.

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
    """Return the tokens of one optimizer step, over all devices, where every sequence is a block."""
    sequences = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    return sequences * block_length


def finish(trainer: Trainer, run: RunDirectory, metrics: dict[str, Any]) -> RunResult:
    """Write the loss curve and the figures of a run whose results are saved, and return what it came to."""
    if trainer.is_world_process_zero():
        write_json(run.history, loss_curve(trainer.state))
        write_json(run.metrics, metrics)  # last, since it says that the run is finished
    return RunResult(run.path, True, trainer.state.global_step, None, metrics)


def run_metrics(trainer: Trainer, tokens: int) -> dict[str, Any]:
    """Return the figures of a finished run; losses in nats a token, times in seconds.

    Args:
        trainer: after its last step.
        tokens: the tokens that it trained on.

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
