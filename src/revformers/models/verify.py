"""Verification that rebuilt gradients equal stored ones, for a given model, batch, device and random state."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn

from revformers.activations import ActivationPolicy, Rebuild, Store
from revformers.engine.replay import RandomState
from revformers.errors import counted
from revformers.models.attach import activations_set_to
from revformers.models.batch import inputs_of
from revformers.models.deterministic_kernels import (
    NoDeterministicKernelError,
    deterministic_kernels,
    kernels_are_deterministic,
    operation_without_deterministic_form,
)
from revformers.models.parts import require_reversible
from revformers.models.processes import gathered
from revformers.private_api import has_accumulation_hooks, has_unreduced_gradients, inner_tensors

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class GradientReport:
    """The comparison of the rebuilt gradient of one step with the stored one.

    Attributes:
        bit_exact: whether the losses and every parameter's gradient are equal to the bit; a NaN equals a NaN.
        decided: whether the comparison tells rebuilt activations from stored ones. False if the gradients differ and
            those of two passes with stored activations do so as well, at equal losses, because a kernel of the backward
            pass varies from call to call and PyTorch has no deterministic one in its place.
        kernels: "as set" by the caller, or "deterministic" if PyTorch's deterministic kernels were used because the
            gradients differed and the losses did not.
        varying: the names of the parameters whose gradients differ between two passes with stored activations and the
            kernels as set, largest difference first; empty if that was not tried, because the gradients were equal or
            the losses were not.
        missing: the operation without a deterministic form that left the comparison undecided, as PyTorch names it.
        max_relative_error: the largest difference of any gradient entry, relative to the largest entry of the whole
            gradient. All parameters share one scale, because some have a true gradient of zero (OPT's key bias).
        differing: the names of the parameters whose gradients differ, largest difference first.
        parameters: number of parameters that have a gradient.
        entries: number of entries of these gradients; with the first version of FSDP, of the parts in this process.
        loss: the loss with stored activations.
        rebuilt_loss: the loss with rebuilt activations.
        recurrence: the dynamics in one line.
        states: the format of the states in both passes, e.g. "32-bit integers up to 32,512 with 16 binary
            digits after the point".
        dtype: the dtype of the parameters, e.g. "float32".
        device: the device of the parameters, e.g. "cpu".

    """

    bit_exact: bool
    decided: bool
    kernels: Literal["as set", "deterministic"]
    varying: tuple[str, ...]
    missing: str
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
        kernels = f"  kernels             {self._kernels}\n" if self.varying or self.kernels == "deterministic" else ""
        return (
            f"{self._verdict}\n"
            f"  dynamics            {self.recurrence}\n"
            f"  states              {self.states}\n"
            f"  compared            {self.parameters} parameters, {self.entries:,} numbers, {self.dtype} on "
            f"{self.device}\n"
            f"{kernels}"
            f"  max relative error  {self.max_relative_error:.3g}\n"
            f"  loss                {self.loss:.6f} stored, {self.rebuilt_loss:.6f} rebuilt"
        )

    @property
    def _kernels(self) -> str:
        variation = f"two passes with stored activations differ in {counted(len(self.varying), 'parameter')}"
        if not self.varying:
            return (
                "PyTorch's deterministic ones, because with the usual ones the gradients differ and the losses do not"
            )
        if self.kernels == "deterministic":
            return f"PyTorch's deterministic ones, because with the usual ones {variation}"
        return f"they vary: {variation}"

    @property
    def _verdict(self) -> str:
        if self.bit_exact:
            return "rebuilt gradients equal stored gradients to the bit"
        if not self.decided:
            reason = f"PyTorch has no deterministic form of {self.missing}" if self.missing else "its kernels vary"
            return f"rebuilt gradients CANNOT BE COMPARED with stored gradients to the bit: {reason}"
        return (
            f"rebuilt gradients DIFFER from stored gradients in {len(self.differing)} parameters, at worst "
            f"{', '.join(self.differing[:3])}"
        )


def verify_gradients(
    model: nn.Module, batch: Mapping[str, Any], *, loss: Callable[[Any], Tensor] | None = None
) -> GradientReport:
    """Compare the gradient with rebuilt activations against the one with stored activations.

    Runs the model twice on the same batch from the same random state (so dropout draws the same masks), in its current
    mode. If only the gradients differ and not the losses, kernels of the backward pass may vary from call to call, as
    those of fused attention do on GPUs. In that case the comparison is repeated with PyTorch's deterministic kernels,
    and the report says so, and whether a second pass with stored activations differed from the first.

    If processes share the model (FSDP, tensor parallelism, DistributedDataParallel), all of them have to call this, and
    they get the same verdict: what differs in one of them differs.

    The model's gradients, its policy, the report of a budget and the random state are restored. Buffers are not: a
    module outside of the layers that keeps running statistics counts every pass. A model whose policy is not one of
    this library runs with that policy instead of `Rebuild`.

    Args:
        model: a reversible model.
        batch: keyword arguments of the model, e.g. ``{"input_ids": int64[batch, tokens]}``. Tensors are moved to the
            model's device. The input ids serve as ``labels`` if these are missing and `loss` is None.
        loss: maps the model's output to the scalar to differentiate; None uses the model's own loss.

    Raises:
        TypeError: if the batch is no mapping.
        ValueError: if the model is not reversible, its dynamics have no inverse, no parameter is trainable or has a
            gradient, hooks of the parameters would use their gradients, FSDP has not reduced those of earlier batches
            yet, or the loss is not finite.
        RebuildMismatchError: if the backward pass finds that it rebuilt other states or used other weights.

    """
    reversible = require_reversible(model)
    trainable = _trainable(model)
    if not trainable:
        raise ValueError("No parameter of the model requires a gradient; there is nothing to verify.")
    if any(map(has_accumulation_hooks, trainable.values())):
        raise ValueError(
            "Hooks on the parameters, such as those of an optimizer, use the gradients inside the backward pass, and "
            "would do so here; verify before they are registered."
        )
    first = next(iter(trainable.values()))
    inputs = inputs_of(batch, first.device)
    if loss is None:
        inputs.setdefault("labels", inputs.get("input_ids"))
        loss = attrgetter("loss")
    activations = reversible.activations
    is_of_this_library = type(activations).__module__.startswith("revformers.")
    policy = Rebuild() if is_of_this_library else activations
    with gradients_set_aside(model) as random_state:

        def run(policy: ActivationPolicy) -> _Pass:
            with activations_set_to(model, policy):
                return _run(model, trainable, inputs, loss, random_state)

        compared = _compare(run, policy, model)
        kernels: Literal["as set", "deterministic"] = "as set"
        varying, missing = compared.varying, ""
        # Not only if stored gradients vary: a kernel that seldom does may have done so in the first pass alone.
        if compared.difference.in_gradients_alone and not kernels_are_deterministic():
            try:
                lacking = gathered(operation_without_deterministic_form(lambda: run(Store())), model)
                missing = next(filter(None, lacking), "")
                if not missing:
                    with deterministic_kernels():
                        compared = _compare(run, policy, model)
                    kernels = "deterministic"
            except NoDeterministicKernelError as error:  # no kernel of attention is left, in the forward pass
                missing = error.operation
    difference = compared.difference
    rebuilt_loss, stored_loss = compared.losses
    return GradientReport(
        bit_exact=difference.equal,
        decided=difference.equal or not compared.varying,
        kernels=kernels,
        varying=varying,
        missing=missing if varying else "",
        max_relative_error=difference.relative_error,
        differing=tuple(difference.errors),
        parameters=len(compared.names),
        entries=sum(trainable[name].numel() for name in compared.names),
        loss=stored_loss,
        rebuilt_loss=rebuilt_loss,
        recurrence=reversible.dynamics.recurrence,
        states=str(reversible.fixed_point),
        dtype=str(first.dtype).removeprefix("torch."),
        device=str(first.device),
    )


@dataclass(frozen=True)
class _Pass:
    """The loss of one forward and backward pass, and its gradients."""

    loss: float
    gradients: Gradients


@dataclass(frozen=True)
class _Difference:
    """What differs between two passes, in any of the processes that share the model.

    Attributes:
        same_loss: whether the losses are equal.
        errors: the largest difference of every gradient that differs, by its parameter's name, largest first.
        scale: the largest magnitude of the second pass's gradients.

    """

    same_loss: bool
    errors: Mapping[str, float]
    scale: float

    @property
    def equal(self) -> bool:
        return self.same_loss and not self.errors

    @property
    def in_gradients_alone(self) -> bool:
        return self.same_loss and bool(self.errors)

    @property
    def relative_error(self) -> float:
        largest = _maximum(self.errors.values())
        return 0.0 if not largest else largest / self.scale if self.scale else math.inf


@dataclass(frozen=True)
class _Comparison:
    """A pass that rebuilds against one that stores.

    Attributes:
        difference: between the two.
        varying: the names of the gradients that differ between two passes that store.
        names: those of all stored gradients.
        losses: rebuilt and stored.

    """

    difference: _Difference
    varying: tuple[str, ...]
    names: tuple[str, ...]
    losses: tuple[float, float]


def _compare(run: Callable[[ActivationPolicy], _Pass], policy: ActivationPolicy, model: nn.Module) -> _Comparison:
    """Compare the gradients of `policy` with stored ones, and, if they alone differ, stored ones with stored ones.

    If a loss differs too, it is the forward pass that does not repeat itself, and rebuilding cannot be right.
    """
    rebuilt, stored = run(policy), run(Store())
    found = gathered((stored.loss, len(rebuilt.gradients) + len(stored.gradients)), model)
    for loss, _ in found:
        if not math.isfinite(loss):
            raise ValueError(
                f"The loss is {loss} with stored activations, so there are no gradients to compare; verify on a batch "
                f"and weights that give a finite loss."
            )
    if not any(number for _, number in found):
        raise ValueError(
            "No parameter has a gradient after the backward passes, so there is nothing to compare; the loss has to "
            "depend on a parameter that requires one, and nothing may take it away."
        )
    difference = _difference(rebuilt, stored, model)
    varying: tuple[str, ...] = ()
    if difference.in_gradients_alone:
        rebuilt.gradients.clear()  # a third set of gradients might not fit beside it
        variation = _difference(run(Store()), stored, model)
        if variation.same_loss:
            varying = tuple(variation.errors)
    return _Comparison(difference, varying, tuple(stored.gradients), (rebuilt.loss, stored.loss))


def _difference(one: _Pass, other: _Pass, model: nn.Module) -> _Difference:
    """Return what differs in any process; all of them get the same."""
    scale = _maximum(map(_largest, other.gradients.values()))
    everywhere = gathered(_Difference(one.loss == other.loss, _errors(one.gradients, other.gradients), scale), model)
    names = dict.fromkeys(name for found in everywhere for name in found.errors)
    errors = {name: _maximum(found.errors.get(name, 0.0) for found in everywhere) for name in names}
    return _Difference(
        same_loss=all(found.same_loss for found in everywhere),
        errors=dict(sorted(errors.items(), key=lambda item: -item[1])),
        scale=_maximum(found.scale for found in everywhere),
    )


def _errors(values: Gradients, stored: Gradients) -> dict[str, float]:
    """Return the largest difference of every gradient that differs, by its parameter's name.

    A gradient that only one of the two has differs, and counts as zero in the other.
    """
    zero = torch.zeros(())
    return {
        name: _largest(values.get(name, zero).double() - stored.get(name, zero).double())
        for name in stored | values
        if name not in values or name not in stored or not _same(values[name], stored[name])
    }


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two gradients are equal; torch.equal calls a NaN different from itself."""
    if torch.equal(one, other):
        return True
    unknown = one.isnan()
    return torch.equal(unknown, other.isnan()) and torch.equal(one[~unknown], other[~unknown])


@contextlib.contextmanager
def gradients_set_aside(model: nn.Module) -> Iterator[RandomState]:
    """Yield the random state with the parameters' gradients cleared, and restore the gradients after the block.

    Raises:
        ValueError: if FSDP holds further gradients that it has not reduced, or does not reduce them.

    """
    if has_unreduced_gradients(model):
        raise ValueError(
            "FSDP holds gradients that are not reduced over the processes yet, or does not reduce them now, so that "
            "further passes would add to them; verify before the first backward pass of a step or after the last."
        )
    trainable = _trainable(model)
    before = {name: parameter.grad for name, parameter in trainable.items()}
    contents = {
        name: gradient.clone() for name, gradient in before.items() if gradient is not None and _is_part(gradient)
    }
    try:
        for parameter in trainable.values():
            parameter.grad = None
        yield RandomState.of(next(model.parameters()).device)
    finally:
        for name, parameter in trainable.items():
            parameter.grad = gradient = before[name]
            if gradient is not None and name in contents:
                gradient.copy_(contents[name])


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _run(
    model: nn.Module,
    trainable: Mapping[str, nn.Parameter],
    inputs: Mapping[str, Any],
    loss_of: Callable[[Any], Tensor],
    random_state: RandomState,
) -> _Pass:
    """Run one pass; of gradients that are spread over processes, it keeps the part of this one."""
    for parameter in trainable.values():
        parameter.grad = None
    with random_state.restored(), torch.enable_grad():
        loss = loss_of(model(**inputs))
        loss.backward()
    gradients: Gradients = {}
    for name, parameter in trainable.items():
        if parameter.grad is not None:
            gradient = _local(parameter.grad)
            gradients[name] = gradient.clone() if _is_part(gradient) else gradient
            parameter.grad = None
    return _Pass(loss.item(), gradients)


def _local(gradient: Tensor) -> Tensor:
    to_local = getattr(gradient, "to_local", None)  # of a DTensor
    return gradient if to_local is None else to_local()


def _is_part(gradient: Tensor) -> bool:
    """Whether a gradient lies in larger memory, as in a bucket of DistributedDataParallel that all passes write to."""
    is_plain = gradient.layout == torch.strided and inner_tensors(gradient) is None
    return is_plain and gradient.untyped_storage().nbytes() > gradient.nbytes


def _largest(values: Tensor) -> float:
    """Return the largest magnitude; NaN if any value is NaN, and 0 for no values, as of a part of a small parameter."""
    return torch.linalg.vector_norm(values.double(), float("inf")).item() if values.numel() else 0.0


def _maximum(values: Iterable[float]) -> float:
    """Return the largest value, or 0 if there is none; NaN if any is NaN."""
    return torch.tensor([0.0, *values], dtype=torch.float64).max().item()
