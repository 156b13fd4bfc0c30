"""The cost of storing each step of a stack, by batch shape: observed in one forward pass and used in later ones."""

from dataclasses import dataclass, replace
from operator import le

import torch
from torch import Tensor, nn
from torch.backends import cuda

from revformers.activations.budget.allocation import StepCost
from revformers.engine.field import Field, parts_of
from revformers.engine.replay import AutocastState
from revformers.private_api import attention_of, parameters_of

_ATTENTION_KERNELS = (
    cuda.flash_sdp_enabled,
    cuda.mem_efficient_sdp_enabled,
    cuda.cudnn_sdp_enabled,
    cuda.math_sdp_enabled,
)
"""Whether `scaled_dot_product_attention` may use each kernel, on a CPU as well; `torch.nn.attention.sdpa_kernel`."""


@dataclass(frozen=True)
class ObservedStep:
    """One step of an observed pass.

    Attributes:
        cost: its memory and operations.
        switches: the result of `switches` for its field; with other switches it may need more memory.

    """

    cost: StepCost
    switches: int


@dataclass(frozen=True)
class PassKind:
    """Properties of a pass, with its batch shape, on which the memory of its steps depends."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool
    autocast: AutocastState
    attention_kernels: tuple[bool, ...]
    switches: int

    @classmethod
    def of(cls, embedding: Tensor, first_switches: int) -> "PassKind":
        """Return the kind of a pass.

        Args:
            embedding: the state that it begins with, (batch, tokens, width).
            first_switches: `switches` of its first field, which differ where a whole model is switched, as by `eval()`.

        """
        autocast = AutocastState.of(embedding.device)
        device, requires_grad = embedding.device, embedding.requires_grad
        kernels = tuple(is_enabled() for is_enabled in _ATTENTION_KERNELS)
        return cls(embedding.shape, embedding.dtype, device, requires_grad, autocast, kernels, first_switches)

    def is_within(self, other: "PassKind") -> bool:
        """Whether a pass of this kind needs at most the memory of one of the other kind."""
        return replace(self, shape=other.shape) == other and all(map(le, self.shape, other.shape))


class Observations:
    """The observed passes of one stack."""

    def __init__(self) -> None:
        self._passes: dict[PassKind, tuple[ObservedStep, ...]] = {}

    def find(self, kind: PassKind) -> tuple[ObservedStep, ...] | None:
        """Return the smallest observed pass whose batch was at least as large in every dimension, or None."""
        # A copy, because another thread may add one meanwhile.
        found = {other: steps for other, steps in self._passes.copy().items() if kind.is_within(other)}
        return found[min(found, key=lambda other: other.shape.numel())] if found else None

    def add(self, kind: PassKind, steps: tuple[ObservedStep, ...]) -> None:
        """Keep an observed pass."""
        self._passes[kind] = steps

    def forget(self) -> None:
        """Forget all passes: the modules have changed."""
        self._passes.clear()


def switches(field: Field) -> int:
    """Return a number that changes with what decides how much memory a field takes, apart from the batch shape.

    Of its modules, these are flags, whether a float such as a dropout probability is 0, strings, the attention
    implementation, forwards that were replaced, as by `set_mlp_tiles`, and which weights train. Integers are left out,
    because modules use them to count. Of its arguments, these are which are tensors, such as a mask, and their dtypes.
    """
    parts = list(parts_of(field))
    arguments = tuple(
        (part.dtype, part.dim()) if isinstance(part, Tensor) else part is None
        for part in parts
        if not isinstance(part, nn.Module)
    )
    modules = tuple(
        (
            tuple(
                bool(value) if type(value) is float else value
                for value in vars(module).values()
                if type(value) in (bool, float, str)
            ),
            tuple(weight.requires_grad for weight in parameters_of(module).values() if weight is not None),
            attention_of(vars(module).get("config")),
            id(vars(module).get("forward")),
        )
        for root in parts
        if isinstance(root, nn.Module)
        for module in root.modules()
    )
    return hash((arguments, modules))
