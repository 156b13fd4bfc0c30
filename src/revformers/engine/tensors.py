"""Kinds of tensors, and their parts in memory."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from revformers.private_api import inner_tensors, sparse_parts


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is one block of numbers: no wrapper, not sparse, not nested, not quantized."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not tensor.is_quantized
    )


def parts_in_memory(tensor: Tensor) -> Iterator[Tensor]:
    """Yield what has memory of its own: the tensor itself, or the parts of a wrapper or of a sparse tensor."""
    inner = inner_tensors(tensor)
    if inner is not None:
        for part in inner:
            yield from parts_in_memory(part)
    elif tensor.layout is torch.strided:
        yield tensor
    elif tensor.layout is torch.sparse_coo:
        yield from sparse_parts(tensor)
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        yield from (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
    else:
        yield from (tensor.crow_indices(), tensor.col_indices(), tensor.values())
