"""PyTorch's deterministic kernels for the length of a block."""

import contextlib
from collections.abc import Iterator

import torch

from revformers.private_api import without_deterministic_form


class NoDeterministicKernelError(RuntimeError):
    """An operation has no deterministic implementation, or none that is allowed; the message is that of PyTorch.

    Attributes:
        operation: the name that PyTorch gives it, e.g. "_histc_cuda with floating point input"; for attention whose
            allowed kernels were all refused, "scaled_dot_product_attention".

    """

    def __init__(self, message: str, operation: str) -> None:
        super().__init__(message)
        self.operation = operation


def kernels_are_deterministic() -> bool:
    """Whether PyTorch uses deterministic kernels alone; a mode that only warns is not enough."""
    return torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()


@contextlib.contextmanager
def deterministic_kernels() -> Iterator[None]:
    """Use PyTorch's deterministic kernels in the block, and restore the outer mode after it.

    Kernels for GPUs that sum with atomic operations, such as the backward pass of fused attention, return other bits
    from call to call. Most of them have a slower form that does not.

    Raises:
        NoDeterministicKernelError: if the block needs a kernel that has no such form.

    """
    enabled, only_warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        operation = without_deterministic_form(error)
        if operation is None:
            raise
        raise NoDeterministicKernelError(str(error), operation) from error
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=only_warns)
