"""What the processes of one run find out together, where all have to take the same decision."""

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from revformers.private_api import group_between_nodes

Value = TypeVar("Value")


def gathered(value: Value, model: nn.Module) -> list[Value]:
    """Return this value of all processes that share the model, some of them repeatedly; of this one alone if none do.

    The passes of a shared model wait for the other processes, and so does this function.

    Args:
        value: of this process; anything that can be pickled.
        model: the model, or its wrapper.

    """
    values = [value]
    for group in dict.fromkeys(_groups(model)):
        theirs: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(theirs, values, group)
        values = [one for some in theirs for one in some]
    return values


def is_shared(model: nn.Module) -> bool:
    """Whether processes share a model.

    They do if its parameters are spread over them (FSDP, tensor parallelism), or if it is in a wrapper that reduces
    the gradients (DistributedDataParallel).
    """
    return next(_groups(model), None) is not None


def _groups(model: nn.Module) -> Iterator[Any]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    for parameter in model.parameters():
        mesh = getattr(parameter, "device_mesh", None)  # of a DTensor
        if mesh is not None:
            yield from mesh.get_all_groups()
    for module in model.modules():
        # Of DistributedDataParallel and the first version of FSDP.
        for group in (getattr(module, "process_group", None), group_between_nodes(module)):
            if group is not None:
                yield group
