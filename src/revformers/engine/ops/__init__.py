"""Which kernels move the states: chosen here and nowhere else."""

import os
from functools import cache
from importlib.util import find_spec
from types import ModuleType

from torch import Tensor

from revformers.engine.ops import cpu as plain

SWITCH = "REVFORMERS_KERNELS"
"""Environment variable: "plain" keeps to PyTorch's own operations on CUDA too."""


def kernels_for(states: Tensor) -> ModuleType:
    """Return the module whose `advance`, `retreat` and `read` move `states`.

    That is `kernels.fused` on CUDA where Triton is installed, and `kernels.plain` elsewhere. All give the same bits.

    Raises:
        ValueError: where the environment variable REVFORMERS_KERNELS is set to something else than "plain".

    """
    if not states.is_cuda or not _fused_wanted():
        return plain
    # Triton is large, and only PyTorch's builds for GPUs bring it.
    from revformers.engine.ops import cuda as fused

    return fused


@cache
def _fused_wanted() -> bool:
    switch = os.environ.get(SWITCH, "")
    if switch not in ("", "plain"):
        raise ValueError(f'The environment variable {SWITCH} can only be set to "plain", not {switch!r}.')
    return not switch and find_spec("triton") is not None
