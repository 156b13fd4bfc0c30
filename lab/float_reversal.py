"""The recurrence in floating point, and a backward pass that rebuilds its states by the floating-point inverse.

This is what revformers does not do. It is here to be measured, for models that are built like Llama. `FloatStack` takes
the place of a model's layers. The two formulas of a step are those of `revformers.analysis.walk`; the rest is plain
PyTorch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from revformers.analysis.walk import step_back, step_forwards
from revformers.dynamics.base import Coefficients, Dynamics

States = Literal["autograd", "kept", "inverse"]
"""Where the backward pass has the states from: "autograd" is ordinary automatic differentiation; "inverse" rebuilds
them by the floating-point inverse of the recurrence; "kept" is the same pass with the states of the forward pass, so
that its error is the rounding of the pass itself."""


@dataclass(frozen=True)
class FloatStep:
    """One step p[l+1] = a p[l-1] + b p[l] + c f(p[l]), in the dtype of the states.

    Attributes:
        coefficients: a, b and c.
        field: f, whose result may have another dtype than the states.

    """

    coefficients: Coefficients
    field: Callable[[Tensor], Tensor]

    def advance(self, previous: Tensor, current: Tensor) -> Tensor:
        """Return p[l+1] from p[l-1] and p[l]."""
        return step_forwards(previous, current, self.field(current), self.coefficients)

    def retreat(self, current: Tensor, successor: Tensor, update: Tensor) -> Tensor:
        """Return p[l-1] from p[l], p[l+1] and f(p[l]), by the inverse that is exact for real numbers."""
        return step_back(current, successor, update, self.coefficients)


def trajectory(steps: Sequence[FloatStep], start: Tensor) -> list[Tensor]:
    """Return p[0] = `start`, p[1], ..., p[L], with p[-1] = p[0]."""
    states = [start, start]
    for step in steps:
        states.append(step.advance(*states[-2:]))
    return states[1:]


class Reversal(torch.autograd.Function):
    """p[L] from p[0]; the backward pass rebuilds every state, and adds to the gradients of the fields' parameters."""

    @staticmethod
    def forward(context: Any, start: Tensor, stack: "FloatStack", steps: Sequence[FloatStep]) -> Tensor:
        """Compute p[L]. All states are kept, to judge the rebuilt ones; "inverse" computes with the last two alone."""
        states = trajectory(steps, start)
        context.stack, context.steps = stack, steps
        context.states = [state.detach() for state in states]
        context.autocast = torch.is_autocast_enabled(start.device.type)
        return states[-1].clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Run the steps backwards."""
        states, stack = context.states, context.stack
        device = states[0].device.type
        # The pair (p[l], p[l+1]), and the gradients of the loss with respect to both.
        current, successor = states[-2:]
        of_successor, of_current = gradients[0], torch.zeros_like(states[-1])
        for index, step in reversed(list(enumerate(context.steps))):
            if stack.states == "kept":
                current = states[index]
            stack.errors[index] = relative_distance(current, states[index])
            hidden = current.detach().requires_grad_()
            with torch.enable_grad(), torch.autocast(device, torch.bfloat16, enabled=context.autocast):
                update = step.field(hidden)
            previous = step.retreat(current, successor, update.detach())
            torch.autograd.backward(update, (step.coefficients.update * of_successor).to(update.dtype))
            assert hidden.grad is not None
            of_current = of_current + float(step.coefficients.current) * of_successor + hidden.grad
            of_successor, of_current = of_current, float(step.coefficients.previous) * of_successor
            current, successor = previous, current
        return of_successor + of_current, None, None  # p[-1] is p[0]


class FloatStack(nn.Module):
    """Takes the place of the decoder layers of a model that is built like Llama.

    Args:
        layers: the decoder layers.
        dynamics: the recurrence; p[-1] = p[0], and the head reads p[L].
        dtype: the dtype of the states; the layers read them in the dtype of their weights.
        states: see `States`.

    Attributes:
        errors: after a backward pass, for every p[l] that a field read, the norm of the difference between the state
            that it read and that of the forward pass, relative to the latter.

    """

    def __init__(self, layers: Sequence[nn.Module], dynamics: Dynamics, dtype: torch.dtype, states: States) -> None:
        super().__init__()
        assert (dynamics.start, dynamics.readout) == ("repeat", "last"), "the others are not written here"
        self.layers = nn.ModuleList(layers)
        self.dynamics = dynamics
        self.dtype = dtype
        self.states = states
        self.errors: dict[int, float] = {}

    def forward(self, hidden: Tensor, **inputs: Any) -> Tensor:
        """Return p[L] for p[0] = `hidden`, (batch, tokens, width)."""
        coefficients = self.dynamics.steps(len(self.layers))
        fields = (field for layer in self.layers for field in self._fields(layer, inputs))
        steps = [FloatStep(*pair) for pair in zip(coefficients, fields, strict=True)]
        start = hidden.to(self.dtype)
        last = trajectory(steps, start)[-1] if self.states == "autograd" else Reversal.apply(start, self, steps)
        return last.to(hidden.dtype)

    def _fields(self, layer: nn.Module, inputs: Mapping[str, Any]) -> Iterator[Callable[[Tensor], Tensor]]:
        """Yield the fields of a layer: both branches in turn, or one after the other within the block."""
        kind = layer.get_parameter("input_layernorm.weight").dtype
        inputs = {name: inputs[name] for name in ("attention_mask", "position_embeddings")}
        if self.dynamics.granularity == "branch":
            yield partial(_attention, layer, inputs, kind)
            yield partial(_mlp, layer, kind)
        else:
            yield partial(_block, layer, inputs, kind)


def _attention(layer: Any, inputs: Mapping[str, Any], kind: torch.dtype, hidden: Tensor) -> Tensor:
    update: Tensor = layer.self_attn(hidden_states=layer.input_layernorm(hidden.to(kind)), **inputs)[0]
    return update


def _mlp(layer: Any, kind: torch.dtype, hidden: Tensor) -> Tensor:
    update: Tensor = layer.mlp(layer.post_attention_layernorm(hidden.to(kind)))
    return update


def _block(layer: Any, inputs: Mapping[str, Any], kind: torch.dtype, hidden: Tensor) -> Tensor:
    attention = _attention(layer, inputs, kind, hidden)
    return attention + _mlp(layer, kind, hidden.to(kind) + attention)


def put_in_place(model: Any, stack: FloatStack) -> None:
    """Make a causal language model that is built like Llama run `stack` instead of its layers."""
    model.model.layers = nn.ModuleList([stack])


def relative_distance(found: Tensor, reference: Tensor) -> float:
    """Return the norm of the difference of two tensors relative to that of the second, in float64."""
    wide = reference.double()
    return ((found.double() - wide).norm() / wide.norm()).item()
