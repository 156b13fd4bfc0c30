"""A model on the meta device, of any depth, and what its parameters take."""

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

Training = Literal["full", "lora"]
Optimizer = Literal["adamw", "adamw8bit", "sgd"]

SMALLEST_QUANTISED = 4096
"""Elements below which bitsandbytes keeps the states of a tensor in float32."""

QUANTISATION_BLOCK = 256
"""Elements that share one float32 scale in the 8-bit states of bitsandbytes."""


@dataclass(frozen=True)
class ModelSize:
    """What is alive before, during and after every step, in bytes.

    Attributes:
        parameters: how many there are, adapters included.
        trained: how many of them are trained.
        weights: parameters and buffers.
        gradients: one for every trained parameter.
        optimizer: the states of the optimizer.

    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of them together, in bytes."""
        return self.weights + self.gradients + self.optimizer


def meta_model(config: PreTrainedConfig, layers: int, dtype: torch.dtype) -> Any:
    """Return the causal language model of `config` with `layers` layers, in training mode, on the meta device."""
    values = copy.deepcopy(config)
    values.use_cache = False
    if layers != values.num_hidden_layers:
        values.num_hidden_layers = layers
        # Some families list a type for every layer.
        if getattr(values, "layer_types", None):
            values.layer_types = values.layer_types[:layers]
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(values, dtype=dtype).train()


def with_adapter(model: nn.Module, rank: int) -> Any:
    """Freeze a meta model and give all its linear layers but the head a LoRA adapter.

    Raises:
        ImportError: where PEFT is missing.

    """
    from peft import LoraConfig, get_peft_model

    adapter = LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.device("meta"):
        return get_peft_model(model, adapter)


def model_size(model: nn.Module, optimizer: Optimizer) -> ModelSize:
    """Add up the parameters, buffers, gradients and optimizer states of `model`; shared parameters count once."""
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in parameters),
        trained=sum(parameter.numel() for parameter in trained),
        weights=sum(tensor.nbytes for tensor in (*parameters, *model.buffers())),
        gradients=sum(parameter.nbytes for parameter in trained),
        optimizer=sum(_state_bytes(parameter, optimizer) for parameter in trained),
    )


def _state_bytes(parameter: nn.Parameter, optimizer: Optimizer) -> int:
    """Return the bytes of the optimizer's states of one parameter; SGD without momentum has none."""
    if optimizer == "sgd":
        return 0
    if optimizer == "adamw":
        return 2 * parameter.nbytes
    if parameter.numel() < SMALLEST_QUANTISED:
        return 8 * parameter.numel()
    return 2 * (parameter.numel() + 4 * -(-parameter.numel() // QUANTISATION_BLOCK))
