"""A pretraining run with transformers' Trainer."""

from functools import partial
from typing import Any

import datasets
from rich.console import Console
from transformers import TrainingArguments, default_data_collator

from revformers.data.blocks import build_datasets
from revformers.data.cache import digest
from revformers.data.tokenizer import check_vocabulary
from revformers.dynamics import Residual
from revformers.errors import UserError, as_user_error
from revformers.files import write_text, written_whole
from revformers.head.loss import apply_head
from revformers.models.tiles import set_mlp_tiles
from revformers.reversible import make_residual
from revformers.training.console import command_console, say, signs_of_life
from revformers.training.evaluation import TextTrainer
from revformers.training.inputs import content_of_tokenizer
from revformers.training.main_process import on_main_process
from revformers.training.model import build_dynamics, build_model
from revformers.training.recipe import Recipe
from revformers.training.rounded_updates import WarnOfRoundedUpdates
from revformers.training.run_directory import RunDirectory
from revformers.training.sample import check_lengths, write_samples
from revformers.training.trainer_arguments import trainer_arguments
from revformers.training.trainer_run import (
    RunResult,
    begin_in_directory,
    claim_directory,
    finish,
    run_metrics,
    tokens_in_step,
    train_to_end,
)


def pretrain(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False, console: Console | None = None
) -> RunResult:
    """Train the model of `recipe` from fresh weights, or resume its training from the last checkpoint.

    The run directory then holds the checkpoints of the Trainer, `model` (weights and tokenizer, for
    ``revformers.from_pretrained``), `history.json` (the loss curve over steps and seconds), `metrics.json`,
    `sample.txt` and `recipe.yaml`. A resumed run ends with the same weights as an uninterrupted one, bit for bit on the
    CPU. SIGINT and SIGTERM end the run with a checkpoint after the current step.

    Args:
        recipe: the model, the data and the training.
        resume: continue the run in the run directory.
        overwrite: discard the run in the run directory.
        console: where to show progress; by default standard output.

    Raises:
        FileNotFoundError: for a missing local file.
        UserError: for a recipe that cannot be used, or a run directory that holds another run.
        NotReversibleError: for an architecture that does not support the recipe's dynamics.

    """
    console = console or command_console()
    if not recipe.output:
        raise UserError("The recipe names no run directory; set output.")
    with RunDirectory(recipe.output) as run:
        return _pretrain(recipe, run, console, resume, overwrite)


def _pretrain(recipe: Recipe, run: RunDirectory, console: Console, resume: bool, overwrite: bool) -> RunResult:
    arguments = training_arguments(recipe)
    checkpoint, finished = claim_directory(run, recipe, recipe.data, console, resume=resume, overwrite=overwrite)
    if finished is not None:
        return finished
    model = build_model(recipe)
    with arguments.main_process_first():
        with signs_of_life(console, "preparing the text"):
            tokenizer, training_blocks, validation_blocks = build_datasets(recipe.data, seed=recipe.training.seed)
        if isinstance(training_blocks, datasets.IterableDataset):
            # A resumed Trainer skips batches of one epoch, and takes a stream for longer than the training.
            training_blocks = training_blocks.repeat(None)
        check_vocabulary(model, tokenizer, "raise model.config.vocab_size, or leave it out")
        check_lengths(recipe.sample, tokenizer, getattr(model.config, "max_position_embeddings", None))
    on_main_process(lambda: run.check_inputs(checkpoint, {"tokenizer": _content(recipe.data.tokenizer, tokenizer)}))
    begin_in_directory(run, recipe, checkpoint, overwrite=overwrite)

    with as_user_error():
        apply_head(model, recipe.loss.head, recipe.loss.chunk)
        set_mlp_tiles(model, recipe.training.mlp_tile)
    trainer = TextTrainer(
        model=model,
        args=arguments,
        data_collator=default_data_collator,
        train_dataset=training_blocks,
        eval_dataset=validation_blocks,
        processing_class=tokenizer,
    )
    trainer.add_callback(WarnOfRoundedUpdates(partial(say, console)))
    tokens_per_step = tokens_in_step(arguments, recipe.data.block_length)
    if stopped := train_to_end(trainer, run, checkpoint, console, tokens_per_step, recipe.training):
        return stopped

    metrics = run_metrics(trainer, trainer.state.global_step * tokens_per_step)
    if trainer.is_world_process_zero():
        dynamics = build_dynamics(recipe.dynamics)
        if isinstance(dynamics, Residual) and dynamics.ordinary:
            make_residual(model)  # saved as an ordinary network, which any software can load
        with run.saving(run.model), written_whole(run.model) as directory:
            trainer.accelerator.unwrap_model(model).save_pretrained(directory)
            tokenizer.save_pretrained(directory)
        if recipe.sample.prompts:
            write_text(run.sample, ("\n" + "-" * 80 + "\n").join(write_samples(model, tokenizer, recipe.sample)) + "\n")
    return finish(trainer, run, metrics)


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """Return the Trainer's arguments for `recipe`; raise UserError if the Trainer refuses them."""
    return trainer_arguments(recipe.training, recipe.output, "dynamics.activations", TrainingArguments)


def _content(named: str | None, tokenizer: Any) -> str:
    """Return a name for the content of the tokenizer, which the run trains if the recipe names none."""
    return content_of_tokenizer(named) if named else digest(tokenizer.backend_tokenizer.to_str())
