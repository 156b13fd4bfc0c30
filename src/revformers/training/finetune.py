"""A fine-tuning run of a converted model with transformers' Trainer or TRL's SFTTrainer."""

import dataclasses
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    default_data_collator,
)

from revformers.activations import Checkpoint, Offload, parse_policy
from revformers.checkpoints.card import CARD_NAME, save_deployed_card
from revformers.checkpoints.load import load_tokenizer
from revformers.errors import as_user_error
from revformers.files import write_json, written_whole
from revformers.head.teacher import FrozenCopy, Teacher
from revformers.models.discovery import unwrap
from revformers.models.ordinary import adapters_hold_weights, ordinary
from revformers.models.parts import reversible_stack, update_predictors
from revformers.models.tiles import set_mlp_tiles
from revformers.setup import Setup
from revformers.training.annealing import Annealing
from revformers.training.console import command_console, say, signs_of_life
from revformers.training.deployment import check_deployable, deploy_as_ordinary
from revformers.training.end_of_sequence import without_end_of_sequence
from revformers.training.evaluation import TextTrainer, TokenMeanEvaluation
from revformers.training.finetune_data import FinetuneData, dropped_records, import_trl, load_finetune_data
from revformers.training.finetune_model import (
    check_model,
    check_recipe,
    contents,
    load_model,
    lora_config,
    prepare_dynamics,
    set_loss,
    with_adapter,
)
from revformers.training.finetune_recipe import FinetuneRecipe
from revformers.training.main_process import on_main_process
from revformers.training.rounded_updates import WarnOfRoundedUpdates
from revformers.training.run_directory import RunDirectory
from revformers.training.trainer_arguments import check_training, trainer_arguments
from revformers.training.trainer_run import (
    RunResult,
    begin_in_directory,
    claim_directory,
    finish,
    run_metrics,
    tokens_in_step,
    train_to_end,
)

ACTIVATIONS = "conversion.activations"

UNMARKED = (
    "The chat template does not mark what the assistant says: the loss covers whole conversations. To train on the "
    "assistant alone, put {% generation %} and {% endgeneration %} around what it says in the template, or set "
    "model.tokenizer to one whose template has them."
)


def finetune(
    recipe: FinetuneRecipe, *, resume: bool = False, overwrite: bool = False, console: Console | None = None
) -> RunResult:
    """Convert the pretrained model of `recipe` and train it, or resume its training from the last checkpoint.

    The run directory then holds the checkpoints of the Trainer; `model` (weights and tokenizer, for
    ``revformers.from_pretrained``), or for an adapter `adapter` (in PEFT's format, for ``revformers.load_adapter``)
    and, with adapter.merge, `model`; `conversion` (the dynamics and the update predictors at the start of training);
    `history.json` (the loss curve over steps and seconds); `start.json` and `metrics.json` (the figures before and
    after training); and `recipe.yaml`. With ``deploy: ordinary``, `adapter` and `model` are those of the ordinary
    network. A resumed run ends with the same weights as an uninterrupted one, bit for bit on the CPU. SIGINT and
    SIGTERM end the run with a checkpoint after the current step.

    If the weights are quantised, so are those behind the figures of the ordinary network. transformers' Trainer trains
    on text, in packed blocks. TRL's SFTTrainer trains on prompts with completions and on conversations, unpacked and
    padded. Validation losses are means over tokens.

    Args:
        recipe: the model, the data and the training.
        resume: continue the run in the run directory.
        overwrite: discard the run in the run directory.
        console: where to show progress; by default standard output.

    Raises:
        OSError: for a missing local file, or a model that cannot be loaded.
        UserError: for a recipe that cannot be used, or a run directory that holds another run.
        NotReversibleError: for an architecture that cannot be converted.

    """
    console = console or command_console()
    check_recipe(recipe)
    with RunDirectory(recipe.output) as run:
        check_training(recipe.training, recipe.output, ACTIVATIONS)
        return _finetune(recipe, run, console, resume, overwrite)


def _finetune(recipe: FinetuneRecipe, run: RunDirectory, console: Console, resume: bool, overwrite: bool) -> RunResult:
    source = recipe.data.source_section()
    checkpoint, finished = claim_directory(run, recipe, source, console, resume=resume, overwrite=overwrite)
    if finished is not None:
        return finished
    section = recipe.model
    tokenizer = load_tokenizer(
        section.tokenizer or section.name, revision=None if section.tokenizer else section.revision
    )
    lora = lora_config(recipe.adapter) if recipe.adapter.kind == "lora" else None
    model = load_model(recipe)
    check_model(recipe, model, tokenizer)
    on_main_process(lambda: run.check_inputs(checkpoint, contents(recipe)))
    with signs_of_life(console, "preparing the text"):
        data = load_finetune_data(recipe.data, tokenizer)
    arguments = finetune_arguments(recipe, data)
    if recipe.model.quantization != "nf4":  # nf4 weights are already on their device
        model.to(arguments.device)
    begin_in_directory(run, recipe, checkpoint, overwrite=overwrite)
    if lora is None:
        on_main_process(lambda: run.check_space(model))  # before the conversion, which takes minutes

    teacher: Teacher | None = FrozenCopy(model) if recipe.loss.distillation and lora is None else None
    if recipe.conversion.bits is not None or reversible_stack(model) is not None:
        prepare_dynamics(model, recipe, data, tokenizer, run, arguments, console, fresh=checkpoint is None)
    else:
        policy = parse_policy(recipe.conversion.activations)
        if isinstance(policy, Offload) and arguments.device.type == "cpu":
            policy = Checkpoint()  # the same on a CPU, where transformers' offloading fails
        with as_user_error():
            Setup(None, policy).apply(model)
    if recipe.deploy == "ordinary":
        check_deployable(model)
        for predictor in update_predictors(model):
            predictor.requires_grad_(False)
    if lora is not None:
        model = with_adapter(model, lora, recipe)
    with as_user_error():
        set_mlp_tiles(model, recipe.training.mlp_tile)
    set_loss(model, recipe, teacher)
    trainer = _trainer(model, arguments, data, tokenizer)
    trainer.add_callback(WarnOfRoundedUpdates(partial(say, console)))
    for dropped in dropped_records(data, trainer.train_dataset, trainer.eval_dataset, recipe.data.block_length):
        say(console, dropped)
    if data.form == "messages" and not data.assistant_only:
        say(console, UNMARKED)
    if checkpoint is None:
        trainer.add_callback(MeasureStart(trainer, recipe, run, console))
    if recipe.annealing.steps:
        trainer.add_callback(Annealing(model, recipe.annealing.steps, recipe.annealing.start))

    tokens_per_step = tokens_in_step(arguments, recipe.data.block_length) if data.form == "text" else None
    if stopped := train_to_end(trainer, run, checkpoint, console, tokens_per_step, recipe.training):
        return stopped

    state = trainer.state
    tokens = int(state.num_input_tokens_seen) if tokens_per_step is None else state.global_step * tokens_per_step
    metrics = {**_losses_at_start(trainer), **run_metrics(trainer, tokens)}
    metrics |= _save(trainer, tokenizer, recipe, run, console)
    if trainer.is_world_process_zero() and recipe.deploy == "ordinary":
        _write_deployed_cards(run, metrics)
    return finish(trainer, run, metrics)


def finetune_arguments(recipe: FinetuneRecipe, data: FinetuneData) -> TrainingArguments:
    """Return the arguments of the Trainer, or of the SFTTrainer, that `recipe` describes for its data.

    Raises:
        UserError: for an unknown argument, an argument that a recipe sets elsewhere, or a bad value.

    """
    kind: type[TrainingArguments] = TrainingArguments
    fixed: dict[str, Any] = {}
    if data.form != "text":
        kind = import_trl().SFTConfig
        fixed = {
            "max_length": recipe.data.block_length,
            "packing": False,
            "completion_only_loss": data.form == "prompt_completion",
            "assistant_only_loss": data.assistant_only,
            "include_num_input_tokens_seen": "non_padding",
        }
    # conversion.activations decides, for an ordinary network too; TRL would switch checkpointing on.
    known = {field.name for field in dataclasses.fields(kind)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    fixed[name] = False
    return trainer_arguments(recipe.training, recipe.output, ACTIVATIONS, kind, **fixed)


def _trainer(model: Any, arguments: Any, data: FinetuneData, tokenizer: PreTrainedTokenizerBase) -> Trainer:
    shared = {
        "model": model,
        "args": arguments,
        "train_dataset": data.training,
        "eval_dataset": data.validation,
        "processing_class": tokenizer,
    }
    if data.form == "text":
        trainer = TextTrainer(data_collator=default_data_collator, **shared)
    else:
        with without_end_of_sequence(tokenizer):  # the SFTTrainer encodes the records here
            trainer = _sft_trainer()(**shared)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _sft_trainer() -> Any:
    """Return TRL's SFTTrainer with the loss of the model; TRL's own loss reads the logits or uses a head of its own."""
    kind: Any = import_trl().SFTTrainer

    class ModelLoss(kind):
        def compute_loss(self, *arguments: Any, **keywords: Any) -> Any:
            return Trainer.compute_loss(self, *arguments, **keywords)

    return type("PromptTrainer", (TokenMeanEvaluation, ModelLoss), {})


class MeasureStart(TrainerCallback):
    """Measures the losses at the start of training, and writes them to start.json.

    An evaluation before `Trainer.train` would make accelerate take the model as prepared, and so leave out DDP's wrap.
    """

    def __init__(self, trainer: Trainer, recipe: FinetuneRecipe, run: RunDirectory, console: Console) -> None:
        self._trainer = trainer
        self._model: Any = trainer.model
        self._with_original = recipe.conversion.bits is not None or recipe.deploy == "ordinary"
        self._run = run
        self._console = console

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Measure the loss of the model, and that of the ordinary network where it matters."""
        if self._with_original:
            # An adapter that was initialised from a part of the weights gives it back.
            model = unwrap(self._model) if adapters_hold_weights(self._model) else self._model
            with ordinary(model):
                self._trainer.evaluate(metric_key_prefix="original")
        self._trainer.evaluate(metric_key_prefix="initial")
        losses = _losses_at_start(self._trainer)
        if state.is_world_process_zero:
            write_json(self._run.start, losses)
            shown = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in losses.items())
            say(self._console, f"before training: {shown}")


def _losses_at_start(trainer: Trainer) -> dict[str, float]:
    """Return the losses that `MeasureStart` measured, from the log, which every checkpoint holds."""
    entries = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    names = [name for name in ("original", "initial") if f"{name}_loss" in entries]
    return {f"{name}_validation_loss": entries[f"{name}_loss"] for name in names}


def _save(
    trainer: Trainer, tokenizer: PreTrainedTokenizerBase, recipe: FinetuneRecipe, run: RunDirectory, console: Console
) -> dict[str, float]:
    """Save the adapter, the model, or both; return the loss of the deployed network if the recipe deploys one."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    adapted, deployed, losses = recipe.adapter.kind == "lora", recipe.deploy == "ordinary", {}
    if deployed and not deploy_as_ordinary(model, converted_here=recipe.conversion.bits is not None):
        say(console, f"The adapter names no base model: it belongs to the one {recipe.model.name} was converted from.")
    if adapted and trainer.is_world_process_zero():
        # Before merging: PEFT saves the base embeddings together with adapted ones.
        _save_to(run, run.adapter, model, tokenizer)
    if deployed:
        if recipe.adapter.merge:
            model.merge_adapter()  # rounds to the dtype of the weights, as saving the merged model will
        losses["deployed_validation_loss"] = trainer.evaluate(metric_key_prefix="deployed")["deployed_loss"]
    if trainer.is_world_process_zero() and (recipe.adapter.merge or not adapted):
        if adapted:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # about an adapter merged above
                model = model.merge_and_unload()
        _save_to(run, run.model, model, tokenizer)
    return losses


def _write_deployed_cards(run: RunDirectory, metrics: Mapping[str, Any]) -> None:
    """Replace the card that the trainer wrote for the reversible model by cards of the deployed networks."""
    (run.path / CARD_NAME).unlink(missing_ok=True)
    for directory in (run.adapter, run.model):
        if directory.is_dir():
            save_deployed_card(directory, metrics, adapter=directory == run.adapter)


def _save_to(run: RunDirectory, target: Path, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    with run.saving(target), written_whole(target) as directory:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
