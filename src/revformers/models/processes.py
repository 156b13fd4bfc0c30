"""What the processes of one run find out together, where all have to take the same decision."""

from typing import Any, TypeVar

import torch
from torch import nn

Value = TypeVar("Value")


def gathered(value: Value, model: nn.Module) -> list[Value]:
    """Return this value of all processes of the run if they share the model, and of this one alone if they do not.

    They share a model whose parameters are spread over them (FSDP, tensor parallelism) or whose wrapper reduces the
    gradients (DistributedDataParallel): its passes wait for all processes, and so does this function.

    Args:
        value: of this process; anything that can be pickled.
        model: the model, or its wrapper.

    """
    if not _is_shared(model):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def _is_shared(model: nn.Module) -> bool:
    """Whether a parameter is a DTensor, or a module a wrapper of DistributedDataParallel or the first FSDP."""
    return any(hasattr(parameter, "device_mesh") for parameter in model.parameters()) or any(
        getattr(module, "process_group", None) is not None for module in model.modules()
    )
