"""The network of a fine-tuning run: loading, conversion, adapter and loss."""

import dataclasses
import warnings
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from revformers.activations import parse_policy
from revformers.checkpoints.adapter import apply_conversion
from revformers.checkpoints.adapter_base import save_conversion
from revformers.checkpoints.gguf_file import is_gguf
from revformers.checkpoints.load import load_causal_lm
from revformers.conversion.convert import convert
from revformers.data.tokenizer import check_vocabulary
from revformers.engine.state_format import parse_states
from revformers.errors import UserError, as_user_error, counted, require_package
from revformers.files import written_whole
from revformers.head.loss import HeadLoss, apply_head, set_head_loss
from revformers.head.teacher import AdapterOff, Teacher
from revformers.models.attach import set_activations
from revformers.models.discovery import find_stack
from revformers.models.parts import require_reversible, reversible_stack
from revformers.models.quantization import keep_trainable, quantization_options
from revformers.models.states import set_states
from revformers.setup import Setup
from revformers.training.console import say
from revformers.training.conversion_progress import ConversionProgress
from revformers.training.deployment import leave_out_predictors, refuse_trained_predictors
from revformers.training.finetune_data import FinetuneData, training_blocks
from revformers.training.finetune_recipe import AdapterSection, FinetuneRecipe
from revformers.training.inputs import content_of_configuration, content_of_tokenizer, content_of_weights
from revformers.training.recipe_file import suggestion
from revformers.training.run_directory import RunDirectory
from revformers.training.seal import fault_of, seal

CONVERSION_OPTIONS = ("allocation", "two_evaluations")
"""Keys of conversion.options; the other options of a conversion have recipe fields, or follow from the data."""

REFUSED_ADAPTER = "PEFT refuses the adapter section"


def check_recipe(recipe: FinetuneRecipe) -> None:
    """Raise UserError for mistakes that can be found without loading anything."""
    if not recipe.output:
        raise UserError("The recipe names no run directory; set output.")
    if not recipe.model.name:
        raise UserError("The recipe names no model to fine-tune; set model.name.")
    if not recipe.data.source:
        raise UserError("The recipe names no data to train on; set data.source.")
    if is_gguf(recipe.model.name) and recipe.model.quantization != "none":
        raise UserError("The weights of a GGUF file are dequantised; set model.quantization to none.")
    if recipe.adapter.kind == "none":
        if recipe.model.quantization != "none":
            raise UserError("Quantised weights cannot be trained; set adapter.kind to lora or quantization to none.")
        if recipe.adapter.merge:
            raise UserError("adapter.merge needs an adapter; set adapter.kind to lora.")
    elif recipe.adapter.merge and recipe.model.quantization != "none":
        raise UserError("adapter.merge would round the adapter to the quantised weights; leave one of them out.")
    if recipe.annealing.steps and recipe.training.lr_scheduler_type == "reduce_lr_on_plateau":
        raise UserError(
            "training.lr_scheduler_type reduce_lr_on_plateau compares validation losses, which rise by themselves "
            "while annealing.steps moves the blends; choose another schedule, or set annealing.steps to 0."
        )
    for name in recipe.conversion.options:
        if name not in CONVERSION_OPTIONS:
            raise UserError(f"conversion.options has no {name!r}{suggestion(name, CONVERSION_OPTIONS)}")


def check_model(recipe: FinetuneRecipe, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError if model, tokenizer and recipe do not match; set the tokenizer's eos_token if it has none."""
    name, conversion = recipe.model.name, recipe.conversion
    config = model.config.get_text_config(decoder=True)
    if tokenizer.eos_token is None and isinstance(config.eos_token_id, int):
        # A bare tokenizer.json does not name its end-of-sequence token; the model's configuration does.
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    check_vocabulary(model, tokenizer, f"set model.tokenizer to that of {name}")
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and recipe.data.block_length > longest:
        raise UserError(
            f"data.block_length is {recipe.data.block_length} tokens, but {name} reads at most {longest}; shorten it."
        )
    reversible = reversible_stack(model) is not None
    if reversible and conversion.bits is not None:
        raise UserError(f"{name} is already reversible; set conversion.bits to none to keep its dynamics.")
    if reversible and recipe.loss.distillation:
        raise UserError(
            f"loss.distillation needs an ordinary network as its teacher, and {name} is reversible; name the model "
            f"that it was converted from, and set conversion.bits."
        )
    if not reversible and conversion.bits is None:
        try:
            Setup(None, parse_policy(conversion.activations))
        except ValueError as error:
            raise UserError(
                f"Without conversion {name} is an ordinary network, which cannot {conversion.activations} activations; "
                f"set conversion.bits, or conversion.activations to store, checkpoint or offload."
            ) from error
        if recipe.annealing.steps:
            raise UserError("annealing.steps needs a conversion; set conversion.bits, or annealing.steps to 0.")


def load_model(recipe: FinetuneRecipe) -> Any:
    """Return the recipe's model, on the device of this process if it is in nf4, otherwise on the CPU."""
    section = recipe.model
    dtype = getattr(torch, section.dtype)
    options = quantization_options(section.quantization, dtype)
    if section.revision:
        options["revision"] = section.revision
    if section.quantization == "nf4":  # bitsandbytes quantises on the device that the weights stay on
        options["device_map"] = {"": PartialState().device}
    model = load_causal_lm(section.name, dtype=dtype, **options)
    keep_trainable(model)
    return model


def contents(recipe: FinetuneRecipe) -> dict[str, str]:
    """Return names for the content of what the run reads of its loaded model, under words for each part.

    A checkpoint of a run without an adapter holds all weights, so those of the model matter to a teacher alone. A GGUF
    file has all parts in one.
    """
    section, found = recipe.model, {}
    model = section.name, section.revision
    if section.tokenizer or not is_gguf(section.name):
        tokenizer = (section.tokenizer, None) if section.tokenizer else model
        found["tokenizer, with its chat template,"] = content_of_tokenizer(*tokenizer)
    if not is_gguf(section.name):
        found["configuration of the model"] = content_of_configuration(*model)
    if is_gguf(section.name) or recipe.adapter.kind == "lora" or recipe.loss.distillation:
        found["weights of the model"] = content_of_weights(*model)
    return found


def prepare_dynamics(
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
    """Convert the model, or apply the run's saved conversion; one process converts for all."""
    section = recipe.conversion
    with arguments.main_process_first(local=False):
        if fresh and arguments.process_index == 0:
            if section.bits is not None:
                blocks = training_blocks(data, tokenizer, section.sequences, recipe.data.block_length)
                _convert(model, recipe, blocks.to(model.device), console)
            with written_whole(run.conversion) as directory:
                directory.mkdir()
                save_conversion(model, directory)
                seal(directory)
        else:
            if fault := fault_of(run.conversion):
                raise UserError(f"{fault}; restore it from a copy, or give --overwrite to start again.")
            apply_conversion(model, run.conversion)
    with as_user_error():
        set_activations(model, section.activations)
        if section.states is not None:
            set_states(model, parse_states(section.states).at_most(require_reversible(model).states))


def _convert(model: Any, recipe: FinetuneRecipe, blocks: torch.Tensor, console: Console) -> None:
    """Convert the model in the precision of the training, and print the remarks of the conversion."""
    section, precision = recipe.conversion, recipe.training.precision
    assert section.bits is not None, "the caller converts where there are bits"
    say(console, f"converting at {counted(section.bits, 'bit')}")
    mixed = precision != "float32"
    dtype = getattr(torch, precision) if mixed else None
    with (
        as_user_error(),
        ConversionProgress(console, len(find_stack(model).layers)) as progress,
        torch.autocast(model.device.type, dtype=dtype, enabled=mixed),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "The loss rises by", UserWarning)  # the remarks say it
        options = {"predictor": section.predictor, "states": section.states or "auto", **section.options}
        conversion = convert(model, section.bits, blocks, progress=progress, **options)
    for remark in conversion.remarks:
        say(console, remark)


def lora_config(section: AdapterSection) -> Any:
    """Return the peft.LoraConfig of the section; raise UserError if PEFT refuses it."""
    peft = require_package("peft", "finetune", "An adapter")
    known = [field.name for field in dataclasses.fields(peft.LoraConfig)]
    for name in section.options:
        if name not in known:
            raise UserError(f"adapter.options has no {name!r}{suggestion(name, known)}")
    if section.options.get("layer_replication"):
        raise UserError(
            "adapter.options.layer_replication changes the layers after their conversion; leave it out, or fine-tune a "
            "model that already has these layers."
        )
    values = {
        "r": section.rank,
        "lora_alpha": section.alpha,
        "lora_dropout": section.dropout,
        "target_modules": section.target_modules,
        "task_type": "CAUSAL_LM",
        **section.options,
    }
    with as_user_error(REFUSED_ADAPTER, (TypeError, ValueError)):
        return peft.LoraConfig(**values)


def with_adapter(model: Any, config: Any, recipe: FinetuneRecipe) -> Any:
    """Return the PEFT model around `model`, with an adapter whose initial weights depend on the recipe's seed."""
    from peft import get_peft_model

    if recipe.deploy == "ordinary":
        leave_out_predictors(model, config)
    set_seed(recipe.training.seed)
    with as_user_error(REFUSED_ADAPTER):
        adapted = get_peft_model(model, config, revision=recipe.model.revision)
    if recipe.deploy == "ordinary":
        refuse_trained_predictors(adapted)
    return adapted


def set_loss(model: Any, recipe: FinetuneRecipe, teacher: Teacher | None) -> None:
    """Let the model compute the recipe's loss; if `teacher` is None, the model without its adapter is the teacher."""
    section = recipe.loss
    if section.distillation and teacher is None:
        teacher = AdapterOff(model)
    with as_user_error():
        if section.distillation or section.cross_entropy != 1:
            weights = section.cross_entropy, section.distillation, section.temperature
            set_head_loss(model, HeadLoss(*weights, teacher, section.chunk))
        else:
            apply_head(model, section.head, section.chunk)
