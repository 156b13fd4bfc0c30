"""A fine-tuning run of a converted model on transformers' Trainer, or on TRL's SFTTrainer."""

import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from revformers.checkpoints.adapter import apply_conversion
from revformers.checkpoints.adapter_base import save_conversion
from revformers.checkpoints.card import CARD_NAME, save_deployed_card
from revformers.checkpoints.gguf_file import is_gguf
from revformers.checkpoints.load import load_causal_lm, load_tokenizer
from revformers.console import say
from revformers.conversion.convert import convert
from revformers.conversion.progress import ConversionProgress
from revformers.errors import NotReversibleError, UserError
from revformers.files import write_json, written_whole
from revformers.head.loss import HeadLoss, apply_head, set_head_loss
from revformers.head.teacher import AdapterOff, FrozenCopy, Teacher
from revformers.models.discovery import unwrap
from revformers.models.ordinary import adapters_hold_weights, ordinary
from revformers.models.quantization import keep_trainable, quantization_options
from revformers.models.reversible import set_activations
from revformers.models.state import reversible_stack, update_predictors
from revformers.training.annealing import Annealing
from revformers.training.deployment import (
    check_deployable,
    deploy_as_ordinary,
    leave_out_predictors,
    refuse_trained_predictors,
)
from revformers.training.finetune_data import FinetuneData, import_trl, load_finetune_data, training_blocks
from revformers.training.finetune_recipe import AdapterSection, FinetuneRecipe
from revformers.training.history import loss_curve
from revformers.training.recipe_file import suggestion
from revformers.training.run_directory import RunDirectory
from revformers.training.trainer_run import (
    RunResult,
    apply_tiles,
    finished_result,
    run_metrics,
    train,
    trainer_arguments,
)

CONVERSION_OPTIONS = ("allocation", "two_evaluations")
"""What conversion.options takes; the rest of a conversion has fields of its own, or follows from the data."""


def finetune(
    recipe: FinetuneRecipe, *, resume: bool = False, overwrite: bool = False, console: Console | None = None
) -> RunResult:
    """Convert the pretrained model of `recipe`, and train it, or go on from its last checkpoint.

    The run directory then holds the checkpoints of the Trainer; `model` (weights and tokenizer, for
    ``revformers.from_pretrained``) or, of an adapter, `adapter` (in PEFT's format, for
    ``revformers.load_adapter``) and with adapter.merge `model` as well, of the ordinary network where the recipe's
    deploy says so; `conversion` (the dynamics and the update predictors as training began); `history.json` (the loss
    curve over steps and seconds); `start.json` and `metrics.json` (the figures before and after); and `recipe.yaml`.
    A resumed run ends with the same weights, bit for bit on the CPU, as one that went through. SIGINT and SIGTERM end
    the run after the step at hand, with a checkpoint.

    The figures of the ordinary network are those of its quantised weights, where they are quantised. Text is trained on
    by transformers' Trainer in packed blocks; prompts with completions and conversations by TRL's SFTTrainer, unpacked
    and padded, whose validation loss is a mean over batches.

    Args:
        recipe: what to train, on what, and how.
        resume: continue the run in the run directory.
        overwrite: discard the run in the run directory.
        console: where to show progress; left out, standard output.

    Raises:
        OSError: for a local file that is not there, or a model that cannot be loaded.
        UserError: for a recipe that cannot be used, or a run directory that holds another run.
        NotReversibleError: for an architecture that cannot be converted.

    """
    console = console or Console()
    _check(recipe)
    run = RunDirectory(recipe.output)
    section = recipe.model
    tokenizer = load_tokenizer(
        section.tokenizer or section.name, revision=None if section.tokenizer else section.revision
    )
    lora = _lora_config(recipe.adapter) if recipe.adapter.kind == "lora" else None
    model = _load_model(recipe)
    _check_model(recipe, model, tokenizer)
    data = load_finetune_data(recipe.data, tokenizer)
    arguments = finetune_arguments(recipe, data)
    if recipe.model.quantization != "nf4":  # those weights are on their device already
        model.to(arguments.device)
    with arguments.main_process_first(local=False):
        checkpoint = run.prepare(recipe, resume=resume, overwrite=overwrite)
    if checkpoint is not None and (finished := finished_result(run, checkpoint, recipe.training.max_steps)):
        return finished

    teacher: Teacher | None = FrozenCopy(model) if recipe.loss.distillation and lora is None else None
    if recipe.conversion.bits is not None or reversible_stack(model) is not None:
        _prepare_dynamics(model, recipe, data, tokenizer, run, arguments, console, fresh=checkpoint is None)
    if recipe.deploy == "ordinary":
        check_deployable(model)
        for predictor in update_predictors(model):
            predictor.requires_grad_(False)
    if lora is not None:
        model = _with_adapter(model, lora, recipe)
    apply_tiles(model, recipe.training)
    _set_loss(model, recipe, teacher)
    trainer = _trainer(model, arguments, data, tokenizer)
    if data.form == "messages" and not data.assistant_only:
        say(console, "The chat template does not mark what the assistant says: the loss is over whole conversations.")
    if checkpoint is None:
        start = _losses_before_training(trainer, model, recipe)
        if trainer.is_world_process_zero():
            write_json(run.start, start)
            shown = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in start.items())
            say(console, f"before training: {shown}")
    if recipe.annealing.steps:
        trainer.add_callback(Annealing(model, recipe.annealing.steps, recipe.annealing.start))

    tokens_per_step = None
    if data.form == "text":
        sequences = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        tokens_per_step = sequences * recipe.data.block_length
    if stopped := train(trainer, run, checkpoint, console, tokens_per_step, recipe.training):
        return stopped

    state = trainer.state
    tokens = int(state.num_input_tokens_seen) if tokens_per_step is None else state.global_step * tokens_per_step
    metrics = {**json.loads(run.start.read_text(encoding="utf-8")), **run_metrics(trainer, tokens)}
    metrics |= _save(trainer, tokenizer, recipe, run, console)
    if trainer.is_world_process_zero():
        if recipe.deploy == "ordinary":
            _write_deployed_cards(run, metrics)
        write_json(run.history, loss_curve(state))
        write_json(run.metrics, metrics)  # last, since it says that the run is finished
    return RunResult(run.path, True, state.global_step, None, metrics)


def finetune_arguments(recipe: FinetuneRecipe, data: FinetuneData) -> TrainingArguments:
    """Return the arguments of the Trainer, or of the SFTTrainer, that `recipe` describes for its data.

    Raises:
        UserError: for an argument that it does not have, that a recipe sets elsewhere, or a bad value.

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
    # Of a reversible model the activation policy decides; TRL would switch checkpointing on.
    checkpointing = recipe.conversion.bits is None and recipe.conversion.activations == "checkpoint"
    known = {field.name for field in dataclasses.fields(kind)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    fixed[name] = checkpointing
    return trainer_arguments(recipe.training, recipe.output, "conversion.activations", kind, **fixed)


def _check(recipe: FinetuneRecipe) -> None:
    """Raise UserError for what can be seen without loading anything."""
    if not recipe.output:
        raise UserError("The recipe names no run directory; set output.")
    if not recipe.model.name:
        raise UserError("The recipe names no model to fine-tune; set model.name.")
    if is_gguf(recipe.model.name) and recipe.model.quantization != "none":
        raise UserError("The weights of a GGUF file are dequantised; set model.quantization to none.")
    if recipe.adapter.kind == "none":
        if recipe.model.quantization != "none":
            raise UserError("Quantised weights cannot be trained; set adapter.kind to lora or quantization to none.")
        if recipe.adapter.merge:
            raise UserError("adapter.merge needs an adapter; set adapter.kind to lora.")
    elif recipe.adapter.merge and recipe.model.quantization != "none":
        raise UserError("adapter.merge would round the adapter to the quantised weights; leave one of them out.")
    for name in recipe.conversion.options:
        if name not in CONVERSION_OPTIONS:
            raise UserError(f"conversion.options has no {name!r}{suggestion(name, CONVERSION_OPTIONS)}")


def _check_model(recipe: FinetuneRecipe, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError where model, tokenizer and recipe do not go together; let the tokenizer end a text."""
    name, conversion = recipe.model.name, recipe.conversion
    config = model.config.get_text_config(decoder=True)
    if tokenizer.eos_token is None and isinstance(config.eos_token_id, int):
        # A bare tokenizer.json does not say which of its tokens that is; the model does.
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"The tokenizer has {len(tokenizer)} tokens and {name} {config.vocab_size}; set model.tokenizer to the "
            f"model's own."
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and recipe.data.block_length > longest:
        raise UserError(
            f"data.block_length is {recipe.data.block_length} tokens, but {name} reads at most {longest}; shorten it."
        )
    reversible = reversible_stack(model) is not None
    if reversible and conversion.bits is not None:
        raise UserError(f"{name} is reversible already; set conversion.bits to none to keep its dynamics.")
    if reversible and recipe.loss.distillation:
        raise UserError(
            f"loss.distillation learns from an ordinary network, which {name} no longer is; name the model that it was "
            f"converted from, and set conversion.bits."
        )
    if not reversible and conversion.bits is None:
        if conversion.activations not in ("store", "checkpoint"):
            raise UserError(
                f"Without conversion {name} is an ordinary network, which cannot {conversion.activations} activations; "
                f"set conversion.bits, or conversion.activations to store or checkpoint."
            )
        if recipe.annealing.steps:
            raise UserError("annealing.steps needs a conversion; set conversion.bits, or annealing.steps to 0.")


def _load_model(recipe: FinetuneRecipe) -> Any:
    """Return the model, in nf4 on the device of this process, otherwise on the CPU."""
    section = recipe.model
    dtype = getattr(torch, section.dtype)
    try:
        options = quantization_options(section.quantization, dtype)
    except (ImportError, ValueError) as error:
        raise UserError(str(error)) from error
    if section.revision:
        options["revision"] = section.revision
    if section.quantization == "nf4":  # bitsandbytes quantises on the device that the weights stay on
        options["device_map"] = {"": PartialState().device}
    model = load_causal_lm(section.name, dtype=dtype, **options)
    keep_trainable(model)
    return model


def _prepare_dynamics(
    model: Any,
    recipe: FinetuneRecipe,
    data: FinetuneData,
    tokenizer: PreTrainedTokenizerBase,
    run: RunDirectory,
    arguments: TrainingArguments,
    console: Console,
    *,
    fresh: bool,
) -> None:
    """Convert the model, or give it the conversion that the run began with; one process converts for all."""
    section = recipe.conversion
    with arguments.main_process_first(local=False):
        if fresh and arguments.process_index == 0:
            if section.bits is not None:
                blocks = training_blocks(data, tokenizer, section.sequences, recipe.data.block_length)
                _convert(model, recipe, blocks.to(model.device), console)
            with written_whole(run.conversion) as directory:
                directory.mkdir()
                save_conversion(model, directory)
        else:
            apply_conversion(model, run.conversion)
    try:
        set_activations(model, section.activations)
    except ValueError as error:
        raise UserError(str(error)) from error


def _convert(model: Any, recipe: FinetuneRecipe, blocks: torch.Tensor, console: Console) -> None:
    """Convert the model as it will be trained, in the precision of the training, and say what that came to."""
    section, precision = recipe.conversion, recipe.training.precision
    say(console, f"converting at {section.bits:g} bits")
    mixed = precision != "float32"
    dtype = getattr(torch, precision) if mixed else None
    try:
        with (
            ConversionProgress(console) as progress,
            torch.autocast(model.device.type, dtype=dtype, enabled=mixed),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "The loss rises by", UserWarning)  # the remarks say it
            conversion = convert(
                model,
                section.bits,  # type: ignore[arg-type]
                blocks,
                predictor=section.predictor,
                progress=progress,
                **section.options,
            )
    except NotReversibleError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error
    for remark in conversion.remarks:
        say(console, remark)


def _lora_config(section: AdapterSection) -> Any:
    """Return the peft.LoraConfig of the section; raise UserError where PEFT does not take it."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise UserError('An adapter needs PEFT; pip install "revformers[finetune]".') from error
    known = [field.name for field in dataclasses.fields(LoraConfig)]
    for name in section.options:
        if name not in known:
            raise UserError(f"adapter.options has no {name!r}{suggestion(name, known)}")
    if section.options.get("layer_replication"):
        raise UserError(
            "adapter.options.layer_replication makes a network of other layers than those that were converted; leave "
            "it out, or fine-tune a model that has these layers."
        )
    values = {
        "r": section.rank,
        "lora_alpha": section.alpha,
        "lora_dropout": section.dropout,
        "target_modules": section.target_modules,
        "task_type": "CAUSAL_LM",
        **section.options,
    }
    try:
        return LoraConfig(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"PEFT refuses the adapter section: {' '.join(str(error).split())[:300]}") from error


def _with_adapter(model: Any, config: Any, recipe: FinetuneRecipe) -> Any:
    """Return the PEFT model around `model`, seeded."""
    from peft import get_peft_model

    if recipe.deploy == "ordinary":
        leave_out_predictors(model, config)
    set_seed(recipe.training.seed)
    try:
        adapted = get_peft_model(model, config, revision=recipe.model.revision)
    except ValueError as error:
        raise UserError(f"PEFT refuses the adapter section: {' '.join(str(error).split())[:300]}") from error
    if recipe.deploy == "ordinary":
        refuse_trained_predictors(adapted)
    return adapted


def _set_loss(model: Any, recipe: FinetuneRecipe, teacher: Teacher | None) -> None:
    """Have the model compute the recipe's loss itself; without a teacher, what is under its adapter is the teacher."""
    section = recipe.loss
    if section.distillation and teacher is None:
        teacher = AdapterOff(model)
    try:
        if section.distillation or section.cross_entropy != 1:
            weights = section.cross_entropy, section.distillation, section.temperature
            set_head_loss(model, HeadLoss(*weights, teacher, section.chunk))
        else:
            apply_head(model, section.head, section.chunk)
    except NotReversibleError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


def _trainer(model: Any, arguments: Any, data: FinetuneData, tokenizer: PreTrainedTokenizerBase) -> Trainer:
    shared = {
        "model": model,
        "args": arguments,
        "train_dataset": data.training,
        "eval_dataset": data.validation,
        "processing_class": tokenizer,
    }
    if data.form == "text":
        trainer = Trainer(data_collator=default_data_collator, **shared)
    else:
        trainer = _sft_trainer()(**shared)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _sft_trainer() -> Any:
    """Return TRL's SFTTrainer with the loss of the model: its own one reads the logits or a head of its own."""
    kind: Any = import_trl().SFTTrainer

    class HeadLossTrainer(kind):
        def compute_loss(self, *arguments: Any, **keywords: Any) -> Any:
            return Trainer.compute_loss(self, *arguments, **keywords)

    return HeadLossTrainer


def _losses_before_training(trainer: Trainer, model: Any, recipe: FinetuneRecipe) -> dict[str, float]:
    """Return the validation losses before training: of the model, and of the ordinary network where that has a part."""
    losses = {}
    if recipe.conversion.bits is not None or recipe.deploy == "ordinary":
        # An adapter that began with a part of the weights gives it back.
        with ordinary(unwrap(model) if adapters_hold_weights(model) else model):
            losses["original_validation_loss"] = trainer.evaluate(metric_key_prefix="original")["original_loss"]
    losses["initial_validation_loss"] = trainer.evaluate(metric_key_prefix="initial")["initial_loss"]
    return losses


def _save(
    trainer: Trainer, tokenizer: PreTrainedTokenizerBase, recipe: FinetuneRecipe, run: RunDirectory, console: Console
) -> dict[str, float]:
    """Save the adapter, the model, or both; return the loss of what is deployed, where the recipe says so."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    adapted, deployed, losses = recipe.adapter.kind == "lora", recipe.deploy == "ordinary", {}
    if deployed and not deploy_as_ordinary(model, converted_here=recipe.conversion.bits is not None):
        say(console, f"The adapter names no base model: its own is what {recipe.model.name} was converted from.")
    if adapted and trainer.is_world_process_zero():
        # Before anything is merged: beside adapted embeddings PEFT saves what they are added to.
        _save_to(run.adapter, model, tokenizer)
    if deployed:
        if recipe.adapter.merge:
            model.merge_adapter()  # rounds to the dtype of the weights, as saving the merged model will
        losses["deployed_validation_loss"] = trainer.evaluate(metric_key_prefix="deployed")["deployed_loss"]
    if trainer.is_world_process_zero() and (recipe.adapter.merge or not adapted):
        if adapted:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # of one that is merged already
                model = model.merge_and_unload()
        _save_to(run.model, model, tokenizer)
    return losses


def _write_deployed_cards(run: RunDirectory, metrics: Mapping[str, Any]) -> None:
    """Write the cards of what is deployed in the place of what the trainer wrote of the reversible model."""
    (run.path / CARD_NAME).unlink(missing_ok=True)
    for directory in (run.adapter, run.model):
        if directory.is_dir():
            save_deployed_card(directory, metrics, adapter=directory == run.adapter)


def _save_to(target: Path, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    with written_whole(target) as directory:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
