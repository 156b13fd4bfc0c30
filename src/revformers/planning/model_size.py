"""A model on the meta device, of any depth, and what its parameters take."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from revformers.errors import require_package
from revformers.head.loss import apply_head
from revformers.planning.meta import autocast_without_meta
from revformers.planning.nf4 import Nf4Linear, quantise_linear_layers
from revformers.setup import Optimizer, Setup, Workload, with_depth

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
        """What is alive all the time, in bytes."""
        return self.weights + self.gradients + self.optimizer


def trained_model(workload: Workload, layers: int, setup: Setup | None = None) -> Any:
    """Return the model on the meta device, with that many layers, trained as `setup` does, or with nothing arranged.

    Raises:
        MissingPackageError: for an adapter, without the package peft.
        NotReversibleError: for a model that `setup` cannot make reversible.
        ValueError: for autocast, which there is none of without numbers.

    """
    if workload.precision == "bfloat16_autocast":
        raise ValueError("A step under autocast cannot be planned; plan one in float32 or in bfloat16.")
    model = meta_model(workload.config, layers, workload.dtype)
    if setup is not None:
        setup.apply(model)
    apply_head(model, workload.head)
    if workload.training == "qlora":
        quantise_linear_layers(model)
    return model if workload.training == "full" else with_adapter(model, workload.rank)


def meta_model(config: PreTrainedConfig, layers: int, dtype: torch.dtype) -> Any:
    """Return the causal language model of `config` with `layers` layers, in training mode, on the meta device."""
    values = with_depth(config, layers)
    values.use_cache = False
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(values, dtype=dtype).train()


def with_adapter(model: nn.Module, rank: int) -> Any:
    """Freeze a meta model and give all its linear layers but the head a LoRA adapter.

    Raises:
        MissingPackageError: without the package peft.

    """
    peft = require_package("peft", "finetune", "Planning an adapter")
    adapter = peft.LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    # PEFT warns of settings that it makes itself, and asks whether the model checkpoints by a deprecated name.
    with torch.device("meta"), autocast_without_meta(), warnings.catch_warnings(action="ignore"):
        return peft.get_peft_model(model, adapter)


def model_size(model: nn.Module, optimizer: Optimizer) -> ModelSize:
    """Add up the parameters, buffers, gradients and optimizer states of `model`; shared parameters count once."""
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    packed = [module for module in model.modules() if isinstance(module, Nf4Linear)]
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in parameters)
        + sum(module.elements - module.weight.numel() for module in packed),
        trained=sum(parameter.numel() for parameter in trained),
        weights=sum(tensor.nbytes for tensor in (*parameters, *model.buffers())),
        gradients=sum(parameter.nbytes for parameter in trained),
        optimizer=sum(STATE_BYTES[optimizer](parameter) for parameter in trained),
    )


def _adamw8bit(parameter: nn.Parameter) -> int:
    """Two states of bitsandbytes: a byte an element and the scales, or float32 where the tensor is small."""
    if parameter.numel() < SMALLEST_QUANTISED:
        return 8 * parameter.numel()
    return 2 * (parameter.numel() + 4 * -(-parameter.numel() // QUANTISATION_BLOCK))


def _adafactor(parameter: nn.Parameter) -> int:
    """`torch.optim.Adafactor`: a mean for every row and every column, or one state where there is one dimension."""
    if parameter.dim() < 2:
        return parameter.nbytes
    rows, columns = parameter.numel() // parameter.shape[-1], parameter.numel() // parameter.shape[-2]
    return parameter.element_size() * (rows + columns)


STATE_BYTES: dict[Optimizer, Callable[[nn.Parameter], int]] = {
    "none": lambda parameter: 0,
    "adamw": lambda parameter: 2 * parameter.nbytes,
    "adamw8bit": _adamw8bit,
    "adafactor": _adafactor,
    "lion": lambda parameter: parameter.nbytes,
    "sgd": lambda parameter: 0,
}
"""For each optimizer the bytes of its states of one parameter; the scalar step counts are left out, and so is momentum
of "sgd", which has none by default."""
