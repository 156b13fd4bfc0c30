"""Verification that rebuilt gradients equal stored ones, for a given model, batch, device and random state."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn

from revformers.activations import ActivationPolicy, Rebuild, Store
from revformers.engine.replay import RandomState
from revformers.models.attach import activations_set_to
from revformers.models.batch import inputs_of
from revformers.models.deterministic_kernels import (
    NoDeterministicKernelError,
    deterministic_kernels,
    kernels_are_deterministic,
    operation_without_deterministic_form,
)
from revformers.models.gradient_difference import Difference, Gradients, Pass, difference_of
from revformers.models.gradient_report import GradientReport
from revformers.models.parts import require_reversible
from revformers.models.processes import gathered
from revformers.private_api import base_of, has_accumulation_hooks, inner_tensors, reduction_is_pending_or_off


def verify_gradients(
    model: nn.Module, batch: Mapping[str, Any], *, loss: Callable[[Any], Tensor] | None = None
) -> GradientReport:
    """Compare the gradient with rebuilt activations against the one with stored activations.

    Runs the model twice, and up to seven times, on the same batch from the same random state (so dropout draws the same
    masks), in its current mode. If only the gradients differ and not the losses, kernels of the backward pass may vary
    from call to call, as those of fused attention do on GPUs. In that case the comparison is repeated with PyTorch's
    deterministic kernels, and the report says so, and whether a second pass with stored activations differed from the
    first.

    If processes share the model (FSDP, tensor parallelism, DistributedDataParallel), all of them have to call this, and
    they get the same verdict: what differs in one of them differs. An error inside a pass of one process leaves the
    others waiting for it, as in training.

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
            yet, or the loss is missing or not finite.
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

        def run(policy: ActivationPolicy) -> Pass:
            with activations_set_to(model, policy):
                return _run(model, trainable, inputs, loss, random_state)

        compared = _compare(run, policy, model)
        kernels: Literal["as set", "deterministic"] = "as set"
        varying, missing = compared.varying, ""
        # Not only if stored gradients vary: a kernel that seldom does may have done so in the first pass alone.
        if compared.difference.in_gradients_alone and not all(gathered(kernels_are_deterministic(), model)):
            lacking = gathered(operation_without_deterministic_form(lambda: run(Store())), model)
            missing = next(filter(None, lacking), "")
            if not missing:
                try:
                    with deterministic_kernels():
                        compared = _compare(run, policy, model)
                    kernels = "deterministic"
                except NoDeterministicKernelError as error:  # attention, whose forward pass has no kernel left
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
class _Comparison:
    """A pass that rebuilds against one that stores.

    Attributes:
        difference: between the two.
        varying: the names of the gradients that differ between two passes that store.
        names: those of all stored gradients.
        losses: rebuilt and stored.

    """

    difference: Difference
    varying: tuple[str, ...]
    names: tuple[str, ...]
    losses: tuple[float, float]


def _compare(run: Callable[[ActivationPolicy], Pass], policy: ActivationPolicy, model: nn.Module) -> _Comparison:
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
    difference = difference_of(rebuilt, stored, model)
    varying: tuple[str, ...] = ()
    if difference.in_gradients_alone:
        rebuilt.gradients.clear()  # a third set of gradients might not fit beside it
        variation = difference_of(run(Store()), stored, model)
        if variation.same_loss:
            varying = tuple(variation.errors)
    return _Comparison(difference, varying, tuple(stored.gradients), (rebuilt.loss, stored.loss))


@contextlib.contextmanager
def gradients_set_aside(model: nn.Module) -> Iterator[RandomState]:
    """Yield the random state with the parameters' gradients cleared, and restore the gradients after the block.

    Raises:
        ValueError: if FSDP holds further gradients that it has not reduced, or does not reduce them.

    """
    if reduction_is_pending_or_off(model):
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
    loss_of: Callable[[Any], Tensor | None],
    random_state: RandomState,
) -> Pass:
    """Run one pass; of gradients that are spread over processes, it keeps the part of this one."""
    for parameter in trainable.values():
        parameter.grad = None
    with random_state.restored(), torch.enable_grad():
        loss = loss_of(model(**inputs))
        if loss is None:
            raise ValueError(
                "The model returned no loss; give labels in the batch, or as `loss` a function of the model's output."
            )
        loss.backward()
    gradients: Gradients = {}
    for name, parameter in trainable.items():
        if parameter.grad is not None:
            gradient = _values(parameter.grad)
            gradients[name] = gradient.clone() if _is_part(gradient) else gradient
            parameter.grad = None
    return Pass(loss.item(), gradients)


def _values(gradient: Tensor) -> Tensor:
    """Return the part of a DTensor in this process, and a sparse gradient as a dense one."""
    to_local = getattr(gradient, "to_local", None)
    gradient = gradient if to_local is None else to_local()
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


def _is_part(gradient: Tensor) -> bool:
    """Whether a gradient is a view, as of a bucket of DistributedDataParallel, to which all passes write."""
    return inner_tensors(gradient) is None and base_of(gradient) is not None
