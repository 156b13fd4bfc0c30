"""Meta-device stand-ins for linear layers in NF4, the 4-bit weights of bitsandbytes (QLoRA, arXiv 2305.14314).

bitsandbytes computes on CUDA only. Its code shows its memory use: the packed weight stays in memory; every product,
forward and backward, makes the whole weight in the compute dtype while it runs, and keeps nothing.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

BLOCK = 64
"""Number of elements that share one scale."""

SCALE_BLOCK = 256
"""Number of scales, each quantised to one byte, that share one float32 scale."""

CODE_BYTES = 4 * (16 + 256 + 1)
"""Number of float32 values for both code books and the mean of the scales, one set per weight."""


class Nf4Linear(nn.Linear):
    """A frozen linear layer whose weight needs half a byte per element, plus scales.

    Args:
        linear: the layer on the meta device that this one replaces; its bias is kept unchanged.

    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta", dtype=linear.weight.dtype)
        self.bias = linear.bias
        self.compute_dtype = linear.weight.dtype
        elements = linear.weight.numel()
        scales = -(-elements // BLOCK)
        packed = torch.empty(-(-elements // 2), 1, dtype=torch.uint8, device="meta")
        self.weight = nn.Parameter(packed, requires_grad=False)
        sizes = scales + 4 * -(-scales // SCALE_BLOCK) + CODE_BYTES
        self.register_buffer("scales", torch.empty(sizes, dtype=torch.uint8, device="meta"))

    @property
    def elements(self) -> int:
        """Number of elements of the weight before packing."""
        return self.in_features * self.out_features

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the output of the linear layer for a floating-point `hidden` [..., in_features]."""
        shape = (self.out_features, self.in_features)
        product: Tensor = _Product.apply(hidden.to(self.compute_dtype), self.weight, shape)
        return product if self.bias is None else product + self.bias


class _Product(torch.autograd.Function):
    """The product with a weight that is made for this product and then freed."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.shape = shape
        ctx.save_for_backward(packed)
        return nn.functional.linear(hidden, hidden.new_empty(shape))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient @ gradient.new_empty(ctx.shape), None, None


def quantise_linear_layers(model: PreTrainedModel) -> None:
    """Replace every linear layer of a meta model except its output head by its NF4 stand-in, in place.

    Embeddings, norms, the head, and weights that are not in a `torch.nn.Linear` (GPT-2's Conv1D, stacked experts) stay
    unchanged.
    """
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear and child is not head:
                setattr(parent, name, Nf4Linear(child))
