"""Fields x dynamics x activation policy: one forward pass of the recurrence."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from revformers.dynamics.base import Coefficients, Dynamics
from revformers.engine.field import Field
from revformers.engine.fixed_point import FixedPoint
from revformers.engine.forward_pass import ForwardPass
from revformers.engine.range_check import RangeCheck
from revformers.engine.states import StatePair
from revformers.private_api import transforms_are_active


class Trajectory:
    """One forward pass p[0], p[1], ... of p[l+1] = a p[l-1] + b p[l] + c f_l(p[l]).

    The numbers live in fixed-point integers, which autograd does not differentiate. So each state has a stand-in in
    the autograd graph: a tensor of its shape in the memory of one number, through which its gradient flows. Rounding
    is passed straight through.

    The whole gradient of a state passes through `hidden`, the tensor that holds its value, so hooks on that tensor and
    derivatives with respect to it behave as in an ordinary network. If gradients are summed in a wider dtype, a
    second stand-in carries the part of the gradient that its dtype cannot represent.

    Args:
        dynamics: the recurrence.
        begin: begins the pass of an activation policy with its states; ignored while gradients are disabled.
        embedding: p[0], (batch, tokens, width) in the compute dtype.
        fixed_point: the format of the states.
        gradient_dtype: the dtype in which the gradients of the states are summed; see `engine.gradient_dtype`.
        range_at_once: whether the forward pass reports values that are out of range, for which it waits for the device,
            as it always does without gradients. Otherwise the end of the backward pass reports them.

    Attributes:
        states: the last two states, in fixed point.
        range_check: the magnitudes of the pass.

    Raises:
        RuntimeError: inside a transform of `torch.func`.

    """

    def __init__(
        self,
        dynamics: Dynamics,
        begin: Callable[[StatePair], ForwardPass],
        embedding: Tensor,
        *,
        fixed_point: FixedPoint,
        gradient_dtype: torch.dtype,
        range_at_once: bool,
    ) -> None:
        if transforms_are_active():
            raise RuntimeError(
                "Reversible layers cannot be transformed by torch.func (grad, vjp, jvp, vmap, ...); take gradients "
                "with backward() or torch.autograd.grad, or call revformers.make_residual(model) for the ordinary "
                "network."
            )
        self._dynamics = dynamics
        self._dtype = embedding.dtype
        self.range_check = RangeCheck(fixed_point, embedding)
        self._range_at_once = range_at_once
        current = fixed_point.quantise(embedding.detach().contiguous())
        previous = current.clone() if dynamics.start == "repeat" else torch.zeros_like(current)
        self.states = StatePair(previous, current, fixed_point)
        self._pass = begin(self.states) if torch.is_grad_enabled() else ForwardPass(self.states)
        self._gradient_dtype = gradient_dtype
        self._current: Tensor = _Begin.apply(embedding, self._gradient_dtype)
        zero = dynamics.start == "zero"
        self._previous: Tensor = _stand_in(embedding, self._gradient_dtype) if zero else self._current
        self.hidden, self._remainder = self._read(self._current)
        """p[l], which the next field reads, in the compute dtype."""

    def step(self, name: str, coefficients: Coefficients, field: Field, hidden: Tensor | None = None) -> Tensor:
        """Take one step and return p[l+1], (batch, tokens, width) in the compute dtype.

        Args:
            name: the name of the step in messages, e.g. "layer 3".
            coefficients: a, b and c.
            field: f_l.
            hidden: p[l], if it passed through autograd nodes of other code after `self.hidden`, to which it is equal.

        """
        hidden = self.hidden if hidden is None else hidden
        # If `hidden` is a new leaf or is detached, the second stand-in must not carry its gradient any further.
        remainder = self._remainder if hidden.grad_fn is not None else None
        current, hidden = _Use.apply(hidden, remainder, self._gradient_dtype)
        # Before the field is evaluated, because autograd runs older nodes later.
        previous = _Wait.apply(self._previous, coefficients)
        update = self._pass.evaluate(name, coefficients, field, hidden)
        if getattr(update, "shape", None) != hidden.shape:
            found = list(update.shape) if isinstance(update, Tensor) else f"a {type(update).__name__}"
            raise ValueError(
                f"The update of {name} is {found}, not a tensor of the shape of its state, {list(hidden.shape)}; "
                f"correct the layer, or {type(self._pass).__name__}.evaluate, which returns what the layer computes."
            )
        successor = _Advance.apply(previous, current, update, coefficients)
        self._pass.advance(coefficients, update.detach())
        self._previous, self._current = current, successor
        self.hidden, self._remainder = self._read(successor)
        self.range_check.step(name, coefficients, update, self.hidden)
        return self.hidden

    def readout(self) -> Tensor:
        """Return the input of the final norm and the head, which `dynamics.readout` selects.

        Raises:
            StateRangeError: if a value of this forward pass is out of range, unless the backward pass reports that.

        """
        if self._range_at_once or not self.hidden.requires_grad:
            self.range_check.raise_if_exceeded()
        if self._dynamics.readout == "last":
            return self.hidden
        # Gradients go past `hidden` here.
        return self._watched(_Mean.apply(self._previous, self._current, self.states, self._dtype))

    @property
    def report(self) -> Any:
        """A report of the activation policy's choices; None if the policy makes no choices."""
        return self._pass.report

    def _read(self, current: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden, remainder = _Read.apply(current, self.states, self._dtype)
        return self._watched(hidden), remainder

    def _watched(self, hidden: Tensor) -> Tensor:
        """Return `hidden`, whose gradient lets the end of the backward pass look at the range."""
        if not self._range_at_once and hidden.requires_grad:
            hidden.register_hook(self.range_check.in_backward)
        return hidden


def _stand_in(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor of the shape of `like` in the memory of one number, for gradients of this dtype."""
    return torch.zeros((), dtype=dtype, device=like.device).expand(like.shape)


class _Backwards(torch.autograd.Function):
    """Base of the operations of a trajectory, which have backward derivatives of every order."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(
            "Reversible layers have no forward-mode derivative (torch.autograd.forward_ad); take gradients with "
            "backward() or torch.autograd.grad, or call revformers.make_residual(model) for the ordinary network."
        )


class _Begin(_Backwards):
    """From the embedding to the stand-in of p[0]."""

    @staticmethod
    def forward(ctx: Any, embedding: Tensor, gradient_dtype: torch.dtype) -> Tensor:
        ctx.dtype = embedding.dtype
        return _stand_in(embedding, gradient_dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.to(ctx.dtype), None


class _Use(_Backwards):
    """From the value of p[l] to its stand-in, for the recurrence, and to the value again, for the field."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, remainder: Tensor | None, gradient_dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.dtype = hidden.dtype
        return _stand_in(hidden, gradient_dtype), hidden.view_as(hidden)

    @staticmethod
    def backward(
        ctx: Any, gradient: Tensor | None, of_field: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None]:
        total = _sum(gradient, of_field)
        if total is None:
            return None, None, None
        narrow = total
        if total.dtype != ctx.dtype:
            if ctx.dtype == torch.float16:
                limit = torch.finfo(torch.float16).max
                narrow = total.clamp(-limit, limit)
            narrow = narrow.to(ctx.dtype)
        return narrow, total - narrow if ctx.needs_input_grad[1] else None, None


class _Wait(_Backwards):
    """From the stand-in of p[l-1] to the one that `_Advance` reads.

    While a field is differentiated, two gradients have to be alive: what p[l] has received so far, and that of p[l+1],
    for the field and for p[l-1]. So the share of p[l-1] is not multiplied by a until the field is done.
    """

    @staticmethod
    def forward(ctx: Any, previous: Tensor, coefficients: Coefficients) -> Tensor:
        ctx.set_materialize_grads(False)
        a, c = float(coefficients.previous), coefficients.update
        ctx.factor = a / c if _shares(coefficients) else a
        return _stand_in(previous, previous.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None]:
        return None if gradient is None else _scaled(gradient, ctx.factor), None


class _Advance(_Backwards):
    """From the stand-ins of p[l-1] and p[l], and the update, to the stand-in of p[l+1]; `_Wait` multiplies by a."""

    @staticmethod
    def forward(ctx: Any, previous: Tensor, current: Tensor, update: Tensor, coefficients: Coefficients) -> Tensor:
        ctx.coefficients = coefficients
        ctx.dtype = update.dtype
        return _stand_in(current, current.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        need_previous, need_current, need_update, _ = ctx.needs_input_grad
        a, b, c = ctx.coefficients.previous, ctx.coefficients.current, ctx.coefficients.update
        of_update = _scaled(gradient, c)
        waiting = of_update if _shares(ctx.coefficients) else gradient
        return (
            waiting if need_previous and a else None,
            _scaled(gradient, b) if need_current else None,
            of_update.to(ctx.dtype) if need_update and of_update is not None else None,
            None,
        )


class _Read(_Backwards):
    """From the stand-in of p[l] to its value in the compute dtype, and to a stand-in for what the dtype cannot hold."""

    @staticmethod
    def forward(ctx: Any, current: Tensor, states: StatePair, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.dtype = current.dtype
        hidden = states.read_current(dtype)
        return hidden, None if dtype == current.dtype else _stand_in(current, current.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, remainder: Tensor | None) -> tuple[Tensor | None, None, None]:
        total = _sum(gradient, remainder)
        return None if total is None else total.to(ctx.dtype), None, None


class _Mean(_Backwards):
    """From the stand-ins of the last two states to their mean in the compute dtype."""

    @staticmethod
    def forward(ctx: Any, previous: Tensor, current: Tensor, states: StatePair, dtype: torch.dtype) -> Tensor:
        ctx.dtype = current.dtype
        return states.read_mean(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        half = gradient.to(ctx.dtype) * 0.5
        return half, half, None, None


def _shares(coefficients: Coefficients) -> bool:
    """Whether the gradient that waits for p[l-1] is that of the update, c times too large; |c| < 1 could make it 0."""
    return abs(coefficients.update) >= 1


def _sum(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    """Return the sum of two gradients, in the wider of their dtypes; None counts as 0."""
    if left is None or right is None:
        return right if left is None else left
    return left + right


def _scaled(gradient: Tensor, factor: Fraction | float) -> Tensor | None:
    """Return factor * gradient; None for 0, and the gradient itself, not a copy, for 1."""
    if not factor:
        return None
    return gradient if factor == 1 else gradient * float(factor)
