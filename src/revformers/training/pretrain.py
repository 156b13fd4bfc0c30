"""A pretraining run on transformers' Trainer."""

import dataclasses
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
from transformers import PrinterCallback, Trainer, TrainingArguments, default_data_collator

from revformers.training.data import build_datasets
from revformers.training.errors import RecipeError
from revformers.training.history import Clock, loss_curve
from revformers.training.interruption import SaveOnSignal
from revformers.training.model import build_model
from revformers.training.progress import ShowProgress
from revformers.training.recipe import Recipe
from revformers.training.run_directory import RunDirectory, replaced, write_json, write_text
from revformers.training.sample import check_lengths, write_samples
from revformers.training.strict import suggestion

OWNED = {
    "output_dir": "set output instead",
    "activation_checkpointing": "set dynamics.activations to checkpoint instead",
    "gradient_checkpointing": "set dynamics.activations to checkpoint instead",
    "resume_from_checkpoint": "give --resume instead",
    "bf16": "set training.precision instead",
    "fp16": "set training.precision instead",
}
"""Arguments of the Trainer that a recipe decides elsewhere."""


@dataclass(frozen=True)
class PretrainResult:
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


def pretrain(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False, console: Console | None = None
) -> PretrainResult:
    """Train the model of `recipe` from fresh weights, or on from its last checkpoint.

    The run directory then holds the checkpoints of the Trainer, `model` (weights and tokenizer, for
    ``revformers.from_pretrained``), `history.json` (the loss curve over steps and seconds), `metrics.json`,
    `sample.txt` and `recipe.yaml`. A resumed run ends with the same weights, bit for bit on the CPU, as one that went
    through. SIGINT and SIGTERM end the run after the step at hand, with a checkpoint.

    Args:
        recipe: what to train, on what, and how.
        resume: continue the run in the run directory.
        overwrite: discard the run in the run directory.
        console: where to show progress; left out, standard output.

    Raises:
        FileNotFoundError: for a local file that is not there.
        RecipeError: for a recipe that cannot be used, or a run directory that holds another run.
        NotReversibleError: for an architecture that cannot be given the recipe's dynamics.

    """
    console = console or Console()
    if not recipe.output:
        raise RecipeError("The recipe names no run directory; set output.")
    run = RunDirectory(recipe.output)
    arguments = training_arguments(recipe)
    model = build_model(recipe)
    with arguments.main_process_first():
        tokenizer, training_blocks, validation_blocks = build_datasets(recipe)
        _check_vocabulary(model, tokenizer)
        check_lengths(recipe.sample, tokenizer, getattr(model.config, "max_position_embeddings", None))
        checkpoint = run.prepare(recipe, resume=resume, overwrite=overwrite)
    if checkpoint is not None and (finished := _finished_result(run, checkpoint, recipe)):
        return finished

    clock = Clock()
    sequences = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    progress = ShowProgress(console, clock, sequences * recipe.data.block_length)
    with SaveOnSignal() as interruption:
        trainer = Trainer(
            model=model,
            args=arguments,
            data_collator=default_data_collator,
            train_dataset=training_blocks,
            eval_dataset=validation_blocks,
            processing_class=tokenizer,
            callbacks=[clock, progress, interruption],
        )
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            progress.close()
    step = trainer.state.global_step
    if step < trainer.state.max_steps:
        return PretrainResult(run.path, False, step, interruption.received, {})

    metrics = _metrics(trainer, model, sequences * recipe.data.block_length)
    if trainer.is_world_process_zero():
        with replaced(run.model) as directory:
            trainer.accelerator.unwrap_model(model).save_pretrained(directory)
            tokenizer.save_pretrained(directory)
        write_json(run.history, loss_curve(trainer.state))
        if recipe.sample.prompts:
            write_text(run.sample, ("\n" + "-" * 80 + "\n").join(write_samples(model, tokenizer, recipe.sample)) + "\n")
        write_json(run.metrics, metrics)  # last, since it says that the run is finished
    return PretrainResult(run.path, True, step, None, metrics)


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """Return the Trainer's arguments for `recipe`.

    Raises:
        RecipeError: for an argument that the Trainer does not have, that a recipe sets elsewhere, or a bad value.

    """
    section = recipe.training
    known = [field.name for field in dataclasses.fields(TrainingArguments)]
    for name in section.arguments:
        if name in OWNED:
            raise RecipeError(f"training.arguments cannot set {name!r}; {OWNED[name]}.")
        if name not in known:
            raise RecipeError(f"training.arguments has no {name!r}{suggestion(name, known)}")
    own = {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
    further, precision = own.pop("arguments"), own.pop("precision")
    values = {
        "output_dir": recipe.output,
        "bf16": precision == "bfloat16",
        "fp16": precision == "float16",
        "eval_strategy": "steps",
        "logging_first_step": True,
        "prediction_loss_only": True,  # otherwise an evaluation would keep the logits of every token
        "remove_unused_columns": False,  # the blocks hold nothing else
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "disable_tqdm": True,  # ShowProgress takes its place
        "report_to": "none",
        **own,
        **further,
    }
    try:
        return TrainingArguments(**values)
    except (ImportError, TypeError, ValueError) as error:
        raise RecipeError(f"The Trainer refuses the training section: {' '.join(str(error).split())[:300]}") from error


def _check_vocabulary(model: Any, tokenizer: Any) -> None:
    """Raise RecipeError where the model has no entry for some of the tokens."""
    if len(tokenizer) > model.config.vocab_size:
        raise RecipeError(
            f"The tokenizer has {len(tokenizer)} tokens, but vocab_size in model.config is {model.config.vocab_size}; "
            f"raise it or leave it out."
        )


def _finished_result(run: RunDirectory, checkpoint: Path, recipe: Recipe) -> PretrainResult | None:
    """Return the result of the run in `run` if there is no step left to train, so that resuming twice does no harm."""
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    if step < recipe.training.max_steps or not run.metrics.is_file():
        return None
    return PretrainResult(run.path, True, step, None, json.loads(run.metrics.read_text(encoding="utf-8")))


def _metrics(trainer: Trainer, model: torch.nn.Module, tokens_per_step: int) -> dict[str, Any]:
    """Return the figures of a finished run; losses in nats a token, times in seconds."""
    curve = loss_curve(trainer.state)
    training_loss = [entry["loss"] for entry in curve if "loss" in entry][-1]
    validation_loss = [entry["eval_loss"] for entry in curve if "eval_loss" in entry][-1]
    seconds = curve[-1]["seconds"]
    tokens = trainer.state.global_step * tokens_per_step
    return {
        "training_loss": training_loss,
        "validation_loss": validation_loss,
        "validation_perplexity": math.exp(validation_loss),
        "steps": trainer.state.global_step,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "revformers": version("revformers"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
