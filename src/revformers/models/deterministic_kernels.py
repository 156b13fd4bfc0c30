"""PyTorch's deterministic kernels for the length of a block."""

import contextlib
import warnings
from collections.abc import Callable, Iterator

import torch

from revformers.private_api import named_without_deterministic_form, without_deterministic_form


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


def operation_without_deterministic_form(run: Callable[[], object]) -> str | None:
    """Run a function, and return an operation in it that has no deterministic form; None if there is none.

    PyTorch ends such an operation with an error in its deterministic mode. In a backward pass that leaves FSDP and
    DistributedDataParallel in the middle of their work, so here the mode only warns.
    """
    with _mode(only_warns=True), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run()
        except RuntimeError as error:  # attention that has no kernel left
            operation = without_deterministic_form(error)
            if operation is None:
                raise
            return operation
    names = (named_without_deterministic_form(str(warning.message)) for warning in caught)
    return next((name for name in names if name is not None), None)


@contextlib.contextmanager
def deterministic_kernels() -> Iterator[None]:
    """Use PyTorch's deterministic kernels in the block, and restore the outer mode after it.

    Kernels for GPUs that sum with atomic operations, such as the backward pass of fused attention, return other bits
    from call to call. Most of them have a slower form that does not.

    Raises:
        NoDeterministicKernelError: if the block needs a kernel that has no such form.

    """
    try:
        with _mode(only_warns=False):
            yield
    except RuntimeError as error:
        operation = without_deterministic_form(error)
        if operation is None:
            raise
        raise NoDeterministicKernelError(str(error), operation) from error


@contextlib.contextmanager
def _mode(*, only_warns: bool) -> Iterator[None]:
    """Set PyTorch's deterministic mode in the block, and restore the outer one after it."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=only_warns)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
