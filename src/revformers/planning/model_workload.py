"""The training of a model at hand, as the planner describes one."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from revformers.checkpoints.model_config import unmark_config
from revformers.models.batch import inputs_of
from revformers.models.discovery import find_stack, unwrap
from revformers.models.parts import require_reversible
from revformers.planning.model_size import longest_readable, model_size, size_in
from revformers.setup import Optimizer, Training, Workload


def workload_of(model: nn.Module, batch: Mapping[str, Any], optimizer: Optimizer) -> tuple[Workload, tuple[str, ...]]:
    """Return the training of `model` on batches of this shape, as the planner describes it, and what that leaves out.

    Raises:
        TypeError: if the batch is no mapping.
        ValueError: if the planner cannot describe it, or nothing trains.

    """
    ids, mask = inputs_of(batch, torch.device("meta")).get("input_ids"), batch.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.dim() != 2 or not ids.numel():
        raise ValueError('A batch holds "input_ids", int64[batch, tokens], whose shape is planned for.')
    config = _config_of(model)
    dtype = next(value.dtype for value in unwrap(model).parameters() if value.is_floating_point())
    device = next(model.parameters()).device.type
    # The meta device has no autocast.
    autocast = device != "meta" and torch.is_autocast_enabled(device)
    if autocast or dtype not in (torch.float32, torch.bfloat16):
        found = "under autocast" if autocast else f"in {str(dtype).removeprefix('torch.')}"
        raise ValueError(
            f"Only steps in float32 or bfloat16 without autocast can be planned, not {found}; load the model with "
            f"dtype=torch.bfloat16."
        )
    trained = [parameter.requires_grad for parameter in model.parameters()]
    if not any(trained):
        raise ValueError("Nothing trains: every parameter is frozen; set requires_grad of those that are to train.")
    remarks: list[str] = []
    adapter = _adapter_of(model)
    if adapter is not None:
        remarks += _make_alike_in_all_layers(adapter, model)
    elif not all(trained):
        remarks.append("The time and the activations are those of training all weights, also the frozen ones.")
    if isinstance(mask, Tensor) and not mask.is_meta and not mask.all():
        remarks.append("The mask of padding, up to tokens x tokens numbers a sequence in attention, is not counted.")
    workload = Workload(
        config,
        batch_size=ids.shape[0],
        sequence_length=ids.shape[1],
        precision="float32" if dtype == torch.float32 else "bfloat16",
        head="auto",
        optimizer=optimizer,
        training="full" if adapter is None else _training(model),
        adapter=adapter,
    )
    longest = longest_readable(unwrap(model), workload.longest_sequence)
    if longest is not None and ids.shape[1] > longest:
        raise ValueError(f"The model has positions for {longest} tokens only, and the batch has {ids.shape[1]}.")
    if adapter is not None:
        _refuse_other_weights(model, workload)
    return workload, tuple(remarks)


def _config_of(model: nn.Module) -> Any:
    """Return the configuration of the ordinary network; raise ValueError for what is no causal language model."""
    inner = unwrap(model)
    config = copy.deepcopy(inner.config)
    unmark_config(config)
    causal = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), ())
    if config.get_text_config(decoder=True) is not config or not isinstance(inner, causal):
        raise ValueError(
            f"Only causal language models of transformers, such as LlamaForCausalLM, can be planned, and "
            f"{type(inner).__name__} is none."
        )
    return config


def _adapter_of(model: nn.Module) -> Any:
    """Return the configuration of the adapter of a model, None without one; raise ValueError if it has no plan."""
    adapters = dict(getattr(model, "peft_config", None) or {})
    if not adapters:
        return None
    if len(adapters) > 1:
        raise ValueError(
            f"Only one adapter can be planned, and the model has {', '.join(adapters)}; remove the others."
        )
    (adapter,) = adapters.values()
    if adapter.is_prompt_learning or adapter.is_adaption_prompt:
        raise ValueError(
            f"Only adapters of the model's modules, such as LoRA, can be planned, not {adapter.peft_type.value}."
        )
    adapter = copy.deepcopy(adapter)
    if hasattr(adapter, "init_lora_weights"):
        adapter.init_lora_weights = True  # other ways to start read the weights, which a plan does not have
    return adapter


def _make_alike_in_all_layers(adapter: Any, model: nn.Module) -> list[str]:
    """Let an adapter of some layers change all of them, because a plan is that of like layers; return the remarks."""
    if getattr(adapter, "layers_to_transform", None) is not None:
        adapter.layers_to_transform = adapter.layers_pattern = None
        return ["Activations and time are those of the adapter in every layer, not only in layers_to_transform."]
    trained = [
        sum(value.numel() for value in layer.parameters() if value.requires_grad) for layer in find_stack(model).layers
    ]
    if len(set(trained)) > 1:
        return ["Not all layers train as many weights; activations and time are those of layers like the first ones."]
    return []


def _refuse_other_weights(model: nn.Module, workload: Workload) -> None:
    """Raise ValueError if weights train that do not belong to the adapter, so that a plan does not know of them."""
    trained = model_size(model, workload.optimizer).trained
    planned = size_in(workload, require_reversible(model).predictor_form).trained
    if trained > planned:
        raise ValueError(
            f"Beside the adapter, {trained - planned:,} weights of the model train, which cannot be planned; freeze "
            f"them, or name their modules in modules_to_save of the adapter."
        )


def _training(model: nn.Module) -> Training:
    return "qlora" if any(type(value).__name__ == "Params4bit" for value in model.parameters()) else "lora"
