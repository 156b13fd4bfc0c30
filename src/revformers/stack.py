"""Fields x dynamics x activation policy: one forward pass of the recurrence."""

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from revformers.activations import ActivationPolicy, PolicyFactory
from revformers.activations.budget import BudgetReport
from revformers.activations.store import Store
from revformers.dynamics.base import Coefficients, Dynamics
from revformers.exact.fixed_point import quantise
from revformers.exact.range_check import RangeCheck
from revformers.exact.state_pair import StatePair
from revformers.field import Field


class Trajectory:
    """One forward pass p[0], p[1], ... of p[l+1] = a p[l-1] + b p[l] + c f_l(p[l]).

    The numbers live in fixed-point integers, which autograd does not differentiate. So each state has a stand-in in
    the autograd graph: a tensor of its shape, four bytes in size, through which its gradient flows in float32 (float64
    for float64 models). Rounding is passed straight through.

    Args:
        dynamics: the recurrence.
        policy: makes what decides what is kept for the backward pass; ignored while gradients are disabled.
        embedding: p[0], (batch, tokens, width) in the compute dtype.

    """

    def __init__(self, dynamics: Dynamics, policy: PolicyFactory, embedding: Tensor) -> None:
        self._dynamics = dynamics
        self._dtype = embedding.dtype
        self._range = RangeCheck()
        self._range.observe("embedding", embedding)
        current = quantise(embedding.detach().contiguous())
        previous = current.clone() if dynamics.start == "repeat" else torch.zeros_like(current)
        self._states = StatePair(previous, current)
        self._policy: ActivationPolicy = (policy if torch.is_grad_enabled() else Store)(self._states)
        self._current: Tensor = _Begin.apply(embedding)
        self._previous = self._current if dynamics.start == "repeat" else _stand_in(embedding)
        self.hidden: Tensor = self._read()
        """p[l], which the next field reads, in the compute dtype."""

    def step(self, name: str, coefficients: Coefficients, field: Field, hidden: Tensor | None = None) -> Tensor:
        """Take one step and return p[l+1], (batch, tokens, width) in the compute dtype.

        Args:
            name: what messages call the step, e.g. "layer 3".
            coefficients: a, b and c.
            field: f_l.
            hidden: p[l] where it reached the field through other autograd nodes than ours; equal to `self.hidden`.

        """
        update = self._policy.evaluate(name, coefficients, field, self.hidden if hidden is None else hidden)
        if update.shape != self.hidden.shape:
            raise ValueError(
                f"The field of {name} maps a state {list(self.hidden.shape)} to an update {list(update.shape)}; "
                f"the shapes must agree."
            )
        self._range.observe(f"update of {name}", update, coefficients.update)
        successor = _Advance.apply(self._previous, self._current, update, coefficients)
        self._policy.advance(coefficients, update.detach())
        self._previous, self._current = self._current, successor
        self.hidden = self._read()
        self._range.observe(f"state after {name}", self.hidden)
        return self.hidden

    def readout(self) -> Tensor:
        """Return what the final norm and the head read, as `dynamics.readout` says.

        Raises:
            StateRangeError: where a value of this forward pass was out of range.

        """
        self._range.raise_if_exceeded()
        if self._dynamics.readout == "last":
            return self.hidden
        return _Mean.apply(self._previous, self._current, self._states, self._dtype)

    @property
    def report(self) -> BudgetReport | None:
        """What the activation policy chose, where it has a choice."""
        return self._policy.report

    @property
    def largest_magnitude(self) -> float:
        """The largest magnitude of a state or an update, once `readout` was called."""
        return self._range.largest

    def _read(self) -> Tensor:
        return _Read.apply(self._current, self._states, self._dtype)


def _stand_in(like: Tensor) -> Tensor:
    """Return a tensor of the shape of `like` that takes four (eight) bytes, for gradients in float32 (float64)."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.zeros((), dtype=dtype, device=like.device).expand(like.shape)


class _Begin(torch.autograd.Function):
    """From the embedding to the stand-in of p[0]."""

    @staticmethod
    def forward(ctx: Any, embedding: Tensor) -> Tensor:
        ctx.dtype = embedding.dtype
        return _stand_in(embedding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.to(ctx.dtype)


class _Advance(torch.autograd.Function):
    """From the stand-ins of p[l-1] and p[l], and the update, to the stand-in of p[l+1]."""

    @staticmethod
    def forward(ctx: Any, previous: Tensor, current: Tensor, update: Tensor, coefficients: Coefficients) -> Tensor:
        ctx.coefficients = coefficients
        ctx.dtype = update.dtype
        return _stand_in(current)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        need_previous, need_current, need_update, _ = ctx.needs_input_grad
        a, b, c = ctx.coefficients.previous, ctx.coefficients.current, ctx.coefficients.update
        return (
            _scaled(gradient, a) if need_previous else None,
            _scaled(gradient, b) if need_current else None,
            _scaled(gradient, c).to(ctx.dtype) if need_update and c else None,  # type: ignore[union-attr]
            None,
        )


class _Read(torch.autograd.Function):
    """From the stand-in of p[l] to its value in the compute dtype."""

    @staticmethod
    def forward(ctx: Any, current: Tensor, states: StatePair, dtype: torch.dtype) -> Tensor:
        ctx.dtype = current.dtype
        return states.read_current(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.to(ctx.dtype), None, None


class _Mean(torch.autograd.Function):
    """From the stand-ins of the last two states to their mean in the compute dtype."""

    @staticmethod
    def forward(ctx: Any, previous: Tensor, current: Tensor, states: StatePair, dtype: torch.dtype) -> Tensor:
        ctx.dtype = current.dtype
        return states.read_mean(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        half = gradient.to(ctx.dtype) * 0.5
        return half, half, None, None


def _scaled(gradient: Tensor, factor: Fraction | float) -> Tensor | None:
    """Return factor * gradient: nothing for 0, and the gradient itself, not a copy, for 1."""
    if not factor:
        return None
    return gradient if factor == 1 else gradient * float(factor)
