"""Deterministic kernels, with which two passes on a GPU can be compared to the bit."""

import contextlib
import os
from collections.abc import Iterator
from unittest import mock

import torch
from torch.utils import deterministic


@contextlib.contextmanager
def deterministic_kernels() -> Iterator[None]:
    """Let PyTorch use deterministic kernels alone in the block; an operation that has none raises an error.

    Many kernels of GPUs, such as that of the gradient of flash attention, otherwise sum in another order in every call.
    Memory that no kernel writes stays as it is, which PyTorch would fill with a fixed number.
    """
    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    was_filled = deterministic.fill_uninitialized_memory
    with mock.patch.dict(os.environ, {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}):
        torch.use_deterministic_algorithms(True)
        deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        try:
            yield
        finally:
            deterministic.fill_uninitialized_memory = was_filled  # type: ignore[attr-defined]
            torch.use_deterministic_algorithms(before, warn_only=only_warned)
