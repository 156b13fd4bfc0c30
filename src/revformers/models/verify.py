"""Verification that rebuilt gradients equal stored ones, for a given model, batch, device and random state."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from revformers.activations import Rebuild, Store
from revformers.engine.replay import RandomState
from revformers.models.attach import activations_set_to
from revformers.models.batch import inputs_of
from revformers.models.parts import require_reversible


@dataclass(frozen=True)
class GradientReport:
    """The comparison of the rebuilt gradient of one step with the stored one.

    Attributes:
        bit_exact: whether the losses and every parameter's gradient are equal to the bit.
        max_relative_error: the largest difference of any gradient entry, relative to the largest entry of the whole
            gradient. All parameters share one scale, because some have a true gradient of zero (OPT's key bias).
        differing: the names of the parameters whose gradients differ, largest difference first.
        parameters: number of parameters that have a gradient.
        entries: number of entries of these gradients.
        loss: the loss with stored activations.
        rebuilt_loss: the loss with rebuilt activations.
        recurrence: the dynamics in one line.
        states: the format of the states in both passes, e.g. "32-bit integers up to 32,512 with 16 binary
            digits after the point".
        dtype: the dtype of the parameters, e.g. "float32".
        device: the device of the parameters, e.g. "cpu".

    """

    bit_exact: bool
    max_relative_error: float
    differing: tuple[str, ...]
    parameters: int
    entries: int
    loss: float
    rebuilt_loss: float
    recurrence: str
    states: str
    dtype: str
    device: str

    def __str__(self) -> str:
        """Return the report as a few lines of text."""
        verdict = (
            "rebuilt gradients equal stored gradients to the bit"
            if self.bit_exact
            else f"rebuilt gradients DIFFER from stored gradients in {len(self.differing)} parameters, at worst "
            f"{', '.join(self.differing[:3])}"
        )
        return (
            f"{verdict}\n"
            f"  dynamics            {self.recurrence}\n"
            f"  states              {self.states}\n"
            f"  compared            {self.parameters} parameters, {self.entries:,} numbers, {self.dtype} on "
            f"{self.device}\n"
            f"  max relative error  {self.max_relative_error:.3g}\n"
            f"  loss                {self.loss:.6f} stored, {self.rebuilt_loss:.6f} rebuilt"
        )


def verify_gradients(
    model: nn.Module, batch: Mapping[str, Any], *, loss: Callable[[Any], Tensor] | None = None
) -> GradientReport:
    """Compare the gradient with rebuilt activations against the one with stored activations.

    Runs the model twice on the same batch from the same random state (so dropout draws the same masks), in its current
    mode. The model's gradients, its policy, the report of a budget and the random state are restored. Buffers are not:
    a module outside of the layers that keeps running statistics counts both passes. A model whose policy is not one of
    this library runs with that policy instead of `Rebuild`.

    Args:
        model: a reversible model.
        batch: keyword arguments of the model, e.g. ``{"input_ids": int64[batch, tokens]}``. Tensors are moved to the
            model's device. The input ids serve as ``labels`` if these are missing and `loss` is None.
        loss: maps the model's output to the scalar to differentiate; None uses the model's own loss.

    Raises:
        TypeError: if the batch is no mapping.
        ValueError: if the model is not reversible, its dynamics have no inverse, no parameter is trainable, or the
            loss is not finite.
        RebuildMismatchError: if the backward pass finds that it rebuilt other states or used other weights.

    """
    reversible = require_reversible(model)
    trainable = _trainable(model)
    if not trainable:
        raise ValueError("No parameter of the model requires a gradient; there is nothing to verify.")
    first = next(iter(trainable.values()))
    inputs = inputs_of(batch, first.device)
    if loss is None:
        inputs.setdefault("labels", inputs.get("input_ids"))
        loss = attrgetter("loss")
    activations = reversible.activations
    is_of_this_library = type(activations).__module__.startswith("revformers.")
    with gradients_set_aside(model) as random_state:
        with activations_set_to(model, Rebuild() if is_of_this_library else activations):
            rebuilt_loss, rebuilt = _gradients(model, trainable, inputs, loss, random_state)
        with activations_set_to(model, Store()):
            stored_loss, stored = _gradients(model, trainable, inputs, loss, random_state)
    if not torch.isfinite(stored_loss):
        raise ValueError(
            f"The loss is {stored_loss.item()} with stored activations, so there are no gradients to compare; verify "
            f"on a batch and weights that give a finite loss."
        )
    missing = rebuilt.keys() ^ stored.keys()  # a gradient that exists in only one pass counts as zero in the other
    zero = torch.zeros(())
    errors = {
        name: _largest(rebuilt.get(name, zero).double() - stored.get(name, zero).double())
        for name in trainable
        if name in rebuilt or name in stored
    }
    scale = max((_largest(gradient) for gradient in stored.values()), default=0.0)
    differing = [name for name in errors if name in missing or not torch.equal(rebuilt[name], stored[name])]
    largest = torch.tensor(list(errors.values()), dtype=torch.float64).max().item() if errors else 0.0
    return GradientReport(
        bit_exact=not differing and torch.equal(rebuilt_loss, stored_loss),
        max_relative_error=largest / scale if largest else 0.0,
        differing=tuple(sorted(differing, key=lambda name: -errors[name])),
        parameters=len(stored),
        entries=sum(gradient.numel() for gradient in stored.values()),
        loss=stored_loss.item(),
        rebuilt_loss=rebuilt_loss.item(),
        recurrence=reversible.dynamics.recurrence,
        states=str(reversible.fixed_point),
        dtype=str(first.dtype).removeprefix("torch."),
        device=str(first.device),
    )


@contextlib.contextmanager
def gradients_set_aside(model: nn.Module) -> Iterator[RandomState]:
    """Yield the random state with the parameters' gradients cleared, and restore the gradients after the block."""
    trainable = _trainable(model)
    before = {name: parameter.grad for name, parameter in trainable.items()}
    try:
        for parameter in trainable.values():
            parameter.grad = None
        yield RandomState.of(next(model.parameters()).device)
    finally:
        for name, parameter in trainable.items():
            parameter.grad = before[name]


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _gradients(
    model: nn.Module,
    trainable: Mapping[str, nn.Parameter],
    inputs: Mapping[str, Any],
    loss_of: Callable[[Any], Tensor],
    random_state: RandomState,
) -> tuple[Tensor, dict[str, Tensor]]:
    for parameter in trainable.values():
        parameter.grad = None
    with random_state.restored(), torch.enable_grad():
        loss = loss_of(model(**inputs))
        loss.backward()
    return loss.detach(), {name: p.grad for name, p in trainable.items() if p.grad is not None}


def _largest(values: Tensor) -> float:
    """Return the largest magnitude; NaN if any value is NaN."""
    return torch.linalg.vector_norm(values.double(), float("inf")).item()
