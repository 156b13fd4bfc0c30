"""Faults in the forward and backward pass of a small model, under every policy that evaluates layers again."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

import revformers as rf
from lab.studies.faults.fault import ACCEPTABLE, Fault, Outcome, seen_of
from lab.tiny import tiny_batch, tiny_model
from revformers.activations import parse_policy
from revformers.activations.budget.budget import Recompute
from revformers.engine.states import StatePair

Gradients = list[Tensor]
Run = Callable[[Any], Gradients]
"""Trains a step of a model with a fault."""


class _NotCausedError(Exception):
    """A policy does not do what the fault is about."""


POLICIES = ("rebuild", "checkpoint", "offload", "budget:rebuild", "budget:checkpoint")
SHARE = 1.3
"""Room of a budget, as a multiple of the smallest: some parts of layers are kept, and no layer is stored."""

LAYER = 2
"""The layer with the fault, of four."""


def faults() -> list[Fault]:
    """Return the rows of this section."""
    return [Fault(words, remedy, _under_every_policy(run)) for words, remedy, run in _FAULTS]


def _under_every_policy(run: Run) -> Callable[[Path], Outcome]:
    """Return a scenario that compares a run under every policy with that of stored activations.

    Its outcome is that under `rf.Rebuild()`, or the first wrong one, and has those under all policies.
    """

    def scenario(folder: Path) -> Outcome:
        expected: Gradients | None = None
        with contextlib.suppress(_NotCausedError, rf.StateRangeError, ValueError):  # the last two under every policy
            expected = run(_model("store"))
        outcomes = {policy: _outcome(run, policy, expected) for policy in POLICIES}
        shown = next((one for one in outcomes.values() if one.result not in ACCEPTABLE), outcomes[POLICIES[0]])
        return dataclasses.replace(shown, policies=outcomes)

    return scenario


def _outcome(run: Run, policy: str, expected: Gradients | None) -> Outcome:
    try:
        found = run(_model(policy))
    except _NotCausedError as error:
        return Outcome("not run", str(error))
    except Exception as error:
        return seen_of(error)
    if expected is not None and all(map(torch.equal, found, expected)):
        return Outcome("right", "gradients equal stored ones")
    return Outcome("wrong", f"other gradients under {policy}, without an error")


def _model(policy: str) -> Any:
    torch.manual_seed(0)
    model = tiny_model(LlamaForCausalLM, initializer_range=0.2, attention_dropout=0.2)
    model = rf.make_reversible(model, rf.BlendedMidpoint("1/4"), "store").train()
    if policy.startswith("budget"):
        recompute: Recompute = "rebuild" if policy.endswith("rebuild") else "checkpoint"
        size = int(SHARE * rf.smallest_budget(model, 2, 16, recompute))
        policy = f"budget:{size}:{recompute}"
    rf.set_activations(model, parse_policy(policy))
    return model


def _without_dropout(model: Any) -> Any:
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.0
    return model


def _loss(model: Any) -> Tensor:
    return model(**tiny_batch(model)).loss


def _gradients(model: Any, loss: Tensor | None = None) -> Gradients:
    return list(torch.autograd.grad(_loss(model) if loss is None else loss, list(model.parameters())))


def _up(model: Any) -> nn.Linear:
    return model.model.layers[LAYER].mlp.up_proj


def _stepped_weight(model: Any) -> Gradients:
    loss = _loss(model)
    with torch.no_grad():
        _up(model).weight.mul_(1.1)
    try:
        return _gradients(model, loss)
    except RuntimeError as error:
        if isinstance(error, rf.RebuildMismatchError):
            raise
        return []  # PyTorch's own error, with stored activations


def _replaced_weight(model: Any) -> Gradients:
    loss = _loss(model)
    weight = _up(model).weight
    weight.data = weight.data * 1.1
    return _gradients(model, loss)


def _stochastic_depth(model: Any) -> Gradients:
    generator = torch.Generator().manual_seed(0)
    model.model.layers[LAYER].mlp.register_forward_hook(
        lambda module, given, output: output * (torch.rand(2, 1, 1, generator=generator) > 0.5)
    )
    return _gradients(model)


def _scale_per_channel(model: Any) -> Gradients:
    scales = [torch.ones(64)]
    model.model.layers[LAYER].mlp.register_forward_hook(lambda module, given, output: output * scales[0])
    loss = _loss(model)
    scales[0] = scales[0] * 2
    return _gradients(model, loss)


def _switched_to_eval(model: Any) -> Gradients:
    loss = _loss(model)
    model.eval()
    return _gradients(model, loss)


def _nondeterministic_layer(model: Any) -> Gradients:
    generator = torch.Generator().manual_seed(0)
    _up(model).register_forward_hook(
        lambda module, given, output: output * (1 + 1e-6 * torch.rand(1, generator=generator))
    )
    found = rf.nondeterministic_modules(model, tiny_batch(model))
    assert found == (f"model.layers.{LAYER}.mlp.up_proj",), found
    return _gradients(model)


def _dropout_in_two_threads(model: Any) -> Gradients:
    """Another thread draws while a layer is evaluated, at a moment that is always the same."""

    def draw(*_: Any) -> None:
        thread = threading.Thread(target=torch.rand, args=(1,))
        thread.start()
        thread.join()

    torch.manual_seed(0)
    handle = model.model.layers[LAYER].self_attn.q_proj.register_forward_hook(draw)
    loss = _loss(model)
    handle.remove()
    return _gradients(model, loss)


def _two_threads(model: Any) -> Gradients:
    _without_dropout(model)
    with ThreadPoolExecutor(2) as pool:
        return [gradient for found in pool.map(_gradients, [model, model]) for gradient in found]


def _batch_normalisation(model: Any) -> Gradients:
    layer = model.model.layers[LAYER]
    layer.batch_norm = nn.BatchNorm1d(64)
    layer.mlp.register_forward_hook(
        lambda module, given, output: layer.batch_norm(output.flatten(0, 1)).view_as(output)
    )
    return _gradients(model)


def _running_mean(model: Any) -> Gradients:
    mlp = model.model.layers[LAYER].mlp
    mlp.mean = torch.zeros(64)

    def observe(module: nn.Module, given: Any, output: Tensor) -> None:
        mlp.mean.lerp_(output.detach().mean((0, 1)), 0.1)

    mlp.register_forward_hook(observe)
    return _gradients(model)


def _weight(value: float) -> Run:
    def run(model: Any) -> Gradients:
        with torch.no_grad():
            model.model.layers[LAYER].mlp.down_proj.weight[0, 0] = value
            if value == value and abs(value) != float("inf"):
                model.model.layers[LAYER].mlp.down_proj.weight[0] = value
        return _gradients(model)

    return run


def _flipped(part: str) -> Run:
    """One bit of a state, or of what the inverse of a step needs, is another one in the backward pass."""

    def run(model: Any) -> Gradients:
        retreat, flipped = StatePair.retreat, list[None]()

        def flip(self: StatePair, coefficients: Any, update: Tensor, side_information: Any) -> Any:
            if not flipped:
                flipped.append(None)
                if part == "side information":
                    side_information.view(-1)[7] ^= 1
                else:
                    self.current.view(-1)[7] ^= 1
            return retreat(self, coefficients, update, side_information)

        loss = _loss(model)
        with mock.patch.object(StatePair, "retreat", flip):
            gradients = _gradients(model, loss)
        if not flipped:
            raise _NotCausedError("no state is rebuilt, so there is none to flip")
        return gradients

    return run


def _interrupted(error: BaseException) -> Run:
    """The step after an interrupted one is compared."""

    def run(model: Any) -> Gradients:
        def interrupt(*_: Any) -> None:
            raise error

        loss = _loss(model)
        handle = _up(model).weight.register_hook(interrupt)
        try:
            loss.backward()
        except type(error):
            handle.remove()
        model.zero_grad()
        torch.manual_seed(1)
        return _gradients(model)

    return run


def _small_budget(model: Any) -> Gradients:
    rf.set_activations(model, rf.Budget("1KiB"))
    return _gradients(model)


_BEFORE = "Call backward before the change, or repeat the forward pass."
_FIND = "Repair the part that `rf.nondeterministic_modules(model, batch)` names, or train with `rf.Store()`."
_RANGE = "Lower the learning rate, or go back to a checkpoint before the values grew."
_NOTHING = "Nothing."

_FAULTS: list[tuple[str, str, Run]] = [
    ("A weight is changed in place between the forward and the backward pass", _BEFORE, _stepped_weight),
    ("A weight is replaced there (`weight.data = ...`)", _BEFORE, _replaced_weight),
    ("A scale of 64 numbers, one per channel, changes there", _BEFORE, _scale_per_channel),
    ("`model.eval()` is called there, with dropout", _BEFORE, _switched_to_eval),
    ("Stochastic depth draws its mask, one number per sequence, from a generator of its own", _FIND, _stochastic_depth),
    ("A kernel varies from call to call, by one part in a million", _FIND, _nondeterministic_layer),
    (
        "Another thread draws random numbers while a layer with dropout is evaluated",
        "Train one model per process, without dropout, or with `rf.Store()`.",
        _dropout_in_two_threads,
    ),
    ("Two threads train one model, without dropout", _NOTHING, _two_threads),
    (
        "Batch normalisation updates its statistics in training mode",
        "Switch that module to `eval()`, or train with `rf.Store()`.",
        _batch_normalisation,
    ),
    (
        "A module keeps a running mean in an attribute",
        "Keep it outside the layers, or train with `rf.Store()`.",
        _running_mean,
    ),
    ("A weight is NaN", "Go back to a checkpoint.", _weight(float("nan"))),
    ("A weight is infinite", "Go back to a checkpoint.", _weight(float("inf"))),
    ("An update is too large for fixed point", _RANGE, _weight(5e6)),
    ("One bit of a state flips", "Repeat the step.", _flipped("state")),
    ("One bit of the side information flips", "Repeat the step.", _flipped("side information")),
    ("Ctrl-C in the backward pass; the next step", "Clear the gradients.", _interrupted(KeyboardInterrupt())),
    (
        "Memory runs out in the backward pass; the next step",
        "Clear the gradients.",
        _interrupted(torch.OutOfMemoryError("out of memory")),
    ),
    ("A budget is too small for the batch", "Raise the budget, or take a smaller batch.", _small_budget),
]
