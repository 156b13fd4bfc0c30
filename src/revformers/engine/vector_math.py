"""Resolution of the CPU's vector math functions before several threads use them.

PyTorch's x86 builds pass functions such as `torch.cos` to Intel's oneMKL, which chooses a kernel for each of them when
it is first called. In oneMKL 2024.2, which PyTorch 2.13 contains, concurrent first calls from several threads can give
one of them a kernel of half the accuracy, for that call only (https://github.com/pytorch/pytorch/issues/188792). A
layer that is evaluated again would then differ from its first evaluation. A first call from a single thread prevents
this.
"""

import torch

FUNCTIONS = (
    torch.acos,
    torch.asin,
    torch.atan,
    torch.cos,
    torch.erf,
    torch.erfc,
    torch.erfinv,
    torch.exp,
    torch.log,
    torch.log10,
    torch.log2,
    torch.sin,
    torch.sqrt,
    torch.tan,
    torch.tanh,
    torch.trunc,
)
"""The functions that PyTorch leaves to oneMKL (aten/src/ATen/cpu/vml.h)."""


def resolve_vector_math() -> None:
    """Call every function that oneMKL computes once, in the calling thread alone; it takes microseconds."""
    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype, device="cpu")
        for function in FUNCTIONS:
            function(one)
