"""How many bytes autograd saves."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from revformers.private_api import StorageWeakRef, base_of, inner_tensors, sparse_parts


class SavedBytes:
    """Counts the memory behind saved tensors: every block once, and parameters not at all.

    Holds no tensor, so that PyTorch, which keeps the hooks of a forward pass, keeps none through them.

    Attributes:
        count: bytes of what was added since it was last set to 0.

    """

    def __init__(self) -> None:
        self.count = 0
        # A weak reference, like a strong one, keeps the number of a block from being given to another.
        self._seen: set[StorageWeakRef] = set()

    def add(self, tensor: Tensor) -> None:
        """Count a tensor that autograd saves."""
        if is_parameter(tensor):
            return
        for part in parts_in_memory(tensor):
            storage = part.untyped_storage()
            reference = StorageWeakRef(storage)
            if reference not in self._seen:
                self._seen.add(reference)
                self.count += storage.nbytes()


def is_parameter(tensor: Tensor) -> bool:
    """Whether a saved tensor is a parameter, or a view of one."""
    return isinstance(tensor, nn.Parameter) or isinstance(base_of(tensor), nn.Parameter)


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
