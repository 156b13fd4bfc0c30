"""PyTorch's deterministic kernels for the length of a block."""

import contextlib
import os
from collections.abc import Iterator

import torch

from revformers.private_api import without_deterministic_form

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
"""PyTorch refuses products of matrices on CUDA in its deterministic mode unless this environment variable is set."""


class NoDeterministicKernelError(RuntimeError):
    """An operation has no deterministic implementation; the message is that of PyTorch.

    Attributes:
        operation: the name that PyTorch gives it, e.g. "_histc_cuda with floating point input".

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
    workspace = os.environ.get(_CUBLAS)
    os.environ.setdefault(_CUBLAS, ":4096:8")
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
        if workspace is None:
            del os.environ[_CUBLAS]
