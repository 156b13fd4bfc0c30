"""Builds a model of any depth on the meta device and adds up the memory of its parameters."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from revformers.activations import Rebuild
from revformers.dynamics import Midpoint
from revformers.errors import reason_with_type, require_package
from revformers.head.loss import apply_head
from revformers.models.update_predictor import PredictorForm
from revformers.planning.meta import autocast_without_meta
from revformers.planning.nf4 import Nf4Linear, quantise_linear_layers
from revformers.setup import Optimizer, Setup, Workload, with_depth

SMALLEST_QUANTISED = 4096
"""Number of elements below which bitsandbytes keeps the states of a tensor in float32."""

QUANTISATION_BLOCK = 256
"""Number of elements that share one float32 scale in the 8-bit states of bitsandbytes."""


@dataclass(frozen=True)
class ModelSize:
    """The memory that is allocated before, during and after every step, in bytes.

    Attributes:
        parameters: number of parameters, including adapters.
        trained: number of trained parameters.
        weights: parameters and buffers.
        gradients: one for every trained parameter.
        optimizer: states of the optimizer.

    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """Sum of weights, gradients and optimizer states, in bytes."""
        return self.weights + self.gradients + self.optimizer


def trained_model(workload: Workload, layers: int, setup: Setup | None = None) -> Any:
    """Return the model on the meta device with this many layers, changed by `setup`, or unchanged if that is None.

    Raises:
        MissingPackageError: if an adapter needs the package peft and it is not installed.
        NotReversibleError: if `setup` cannot make the model reversible.
        ValueError: for autocast, which the meta device does not support.

    """
    if workload.precision == "bfloat16_autocast":
        raise ValueError("A step under autocast cannot be planned; plan one in float32 or in bfloat16.")
    model = meta_model(workload.config, layers, workload.dtype)
    if workload.training == "qlora":
        quantise_linear_layers(model)  # before predictors are added, which stay in the dtype of the layers
    if setup is not None:
        setup.apply(model)
    apply_head(model, workload.head)
    return model if workload.training == "full" else with_adapter(model, workload.rank, workload.adapter)


def meta_model(config: PreTrainedConfig, layers: int, dtype: torch.dtype) -> Any:
    """Return the causal language model of `config` with `layers` layers, in training mode, on the meta device.

    Raises:
        ValueError: if no model can be built from the configuration, whatever error its class raises.

    """
    try:
        values = with_depth(config, layers)
        values.use_cache = False
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(values, dtype=dtype).train()
    except Exception as error:
        raise ValueError(f"no model can be built from its configuration ({reason_with_type(error)})") from error


def longest_readable(model: Any, longest: int | None) -> int | None:
    """Return the most tokens that a model can read at all; None if its positions are computed for any length.

    Args:
        model: the model.
        longest: the most tokens that it reads by its configuration. Rotary positions exist beyond it; an entry of a
            table of learned positions, or of a mask that is a buffer, does not.

    """
    if longest is None:
        return None
    words = model.get_input_embeddings()
    tables = [
        module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding) and module is not words
    ]
    sizes = [size for buffer in model.buffers() if buffer.dim() >= 2 for size in buffer.shape]
    # Some tables have one or two further entries for padding.
    return longest if any(longest <= size <= longest + 2 for size in (*tables, *sizes)) else None


def with_adapter(model: nn.Module, rank: int, adapter: Any = None) -> Any:
    """Freeze a meta model and add an adapter: LoRA on all its linear layers except the head if `adapter` is None.

    Raises:
        MissingPackageError: if the package peft is not installed.
        ValueError: if PEFT does not find the modules that `adapter` names.

    """
    peft = require_package("peft", "finetune", "Planning an adapter")
    # PEFT writes to the configuration that it is given.
    adapter = copy.deepcopy(adapter) or peft.LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    # PEFT warns about settings that it chooses itself, and reads a deprecated attribute for checkpointing.
    with torch.device("meta"), autocast_without_meta(), warnings.catch_warnings(action="ignore"):
        return peft.get_peft_model(model, adapter)


@lru_cache(maxsize=64)
def size_in(workload: Workload, predictors: PredictorForm | None) -> ModelSize:
    """Return the size of the model of a workload, with update predictors of this form in its layers, if not None."""
    setup = None if predictors is None else Setup(Midpoint(), Rebuild(), predictors=predictors)
    return model_size(trained_model(workload, workload.layers, setup), workload.optimizer)


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
    """Two states of bitsandbytes: one byte per element plus scales, or float32 if the tensor is small."""
    if parameter.numel() < SMALLEST_QUANTISED:
        return 8 * parameter.numel()
    return 2 * (parameter.numel() + 4 * -(-parameter.numel() // QUANTISATION_BLOCK))


def _adafactor(parameter: nn.Parameter) -> int:
    """`torch.optim.Adafactor`: a mean for every row and every column, or one state for a tensor with one dimension."""
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
"""Bytes of the states of one parameter for each optimizer. Scalar step counts are left out; "sgd" has no momentum by
default."""
