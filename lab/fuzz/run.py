"""Runs one set-up with stored activations, with its policy, and as the recurrence in float64, and judges the result."""

import contextlib
import copy
import random
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers.utils import logging

from lab.fuzz.case import Case, draw_case
from lab.fuzz.events import HARMFUL, HARMLESS, OF_ONE_LAYER, Scene
from lab.fuzz.models import ImpossibleError, draw_batches, ordinary_model, reversible_model
from lab.fuzz.orders import ORDERS
from lab.fuzz.reference import Recurrence
from revformers.activations import Budget
from revformers.dynamics import from_dict
from revformers.engine import tape
from revformers.engine.proof.verdicts import Verdicts
from revformers.errors import RebuildMismatchError, StateRangeError
from revformers.models.deterministic_kernels import deterministic_kernels
from revformers.models.discovery import find_stack
from revformers.models.parts import reversible_stack, update_predictors
from revformers.reversible import make_residual

FARTHEST = 1e-2
"""Largest distance of a gradient in float64 from that of the recurrence, relative to its size. Sharp weights amplify
the 2^-30 resolution of the states, and norms compute in float32. Of 296 gradients, all but one were within 2e-5. That
one was 2.7e-3 away; noise of 2^-28 in the states of the recurrence changes it by 4e-3."""

SMALL = 1e-3
"""Size of a gradient, relative to that of all, below which its distance is not measured relative to itself."""

GRAPHS = 64
"""Most graphs that a compiled layer may have."""

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a set-up.

    Attributes:
        kind: "exact"; "refused", by an error after something had changed; "out of range" if states overflow with stored
            activations too; "impossible" if there is no such model, or if the ordinary one with the same parts and
            passes ends in the same kind of error; or "FAILED".
        note: for a failure, the reason; otherwise the error, or empty.
        compared: number of compared gradients.
        distance: distance of the stored gradient from that of the recurrence, relative to its size; None if not
            measured.

    """

    kind: str
    note: str = ""
    compared: int = 0
    distance: float | None = None


@dataclass(frozen=True)
class _Result:
    """The gradients or the error of a run; whether anything had changed before the backward pass, and where."""

    found: Gradients | Exception
    changed: bool
    layer: int = 0


def run_seed(seed: int, device: str = "cpu") -> tuple[Case, Outcome]:
    """Draw the set-up of a seed, run it on a device and on one thread of the CPU, and judge it."""
    logging.set_verbosity_error()
    case = draw_case(seed)
    return case, run_case(case, device)


def run_case(case: Case, device: str = "cpu") -> Outcome:
    """Run a set-up on a device and judge it."""
    threads = torch.get_num_threads()
    # Layers with different frozen weights have graphs of their own.
    graphs = torch.compiler.config.patch(recompile_limit=GRAPHS)  # type: ignore[attr-defined]
    try:
        late = mock.patch.object(tape, "Verdicts", partial(_late_verdicts, Verdicts))
        with (
            warnings.catch_warnings(),
            graphs if case.compiled else contextlib.nullcontext(),
            late if case.late else contextlib.nullcontext(),
            deterministic_kernels() if torch.device(device).type == "cuda" else contextlib.nullcontext(),
        ):
            warnings.simplefilter("ignore")
            return _judge(case, torch.device(device))
    except ImpossibleError as error:
        return Outcome("impossible", str(error))
    except Exception as error:
        return Outcome("FAILED", f"a crash: {_say(error)}")
    finally:
        torch.set_num_threads(threads)
        if case.compiled:  # otherwise the graphs of all set-ups would count together
            torch.compiler.reset()


def _late_verdicts(verdicts: type[Verdicts], *, at_once: bool) -> Verdicts:
    return verdicts(at_once=False)


def _judge(case: Case, device: torch.device) -> Outcome:
    stored = _run(case, reversible_model(case, "store", device))
    try:
        other = _run(case, reversible_model(case, case.policy, device))
    except ImpossibleError as error:
        return Outcome("FAILED", f"no model with this policy, and one that stores: {error}")
    if isinstance(stored.found, Exception) or isinstance(other.found, Exception):
        return _judge_errors(case, stored, other, device)
    gradients = stored.found
    different = [name for name in gradients | other.found if not _same(gradients.get(name), other.found.get(name))]
    if different:
        note = f"{len(different)} of {len(gradients)} gradients differ silently, {different[0]} first"
        return Outcome("FAILED", note)
    if not any(gradient.isfinite().all() and gradient.any() for gradient in gradients.values()):
        return Outcome("FAILED", "there is no finite gradient to compare")
    distance = _distance_from_recurrence(case, gradients, device) if _has_recurrence(case) else None
    if distance is not None and not distance <= FARTHEST:
        return Outcome("FAILED", f"the stored gradient is {distance:.2g} away from that of the recurrence")
    return Outcome("exact", "", len(gradients), distance)


def _judge_errors(case: Case, stored: _Result, other: _Result, device: torch.device) -> Outcome:
    error = other.found
    if not isinstance(error, Exception):
        return Outcome("FAILED", f"ran where storing raises {_say(stored.found)}")
    if type(stored.found) is type(error) is StateRangeError and str(stored.found) == str(error):
        return Outcome("out of range", _say(error))
    if (
        other.changed
        and _names_the_layer(case, error, other.layer)
        and _is_answer_of_storing(case, stored.found, device)
    ):
        return Outcome("refused", _say(error))
    if type(stored.found) is type(error) and _is_of_the_ordinary_model(case, error, device):
        return Outcome("refused" if other.changed else "impossible", _say(error))
    why = "an error that is no answer" if other.changed else "an error where nothing had changed"
    return Outcome("FAILED", f"{why}: {_say(error)}")


def _is_answer_of_storing(case: Case, found: object, device: torch.device) -> bool:
    """Return whether storing may end like this after a change: in gradients, in PyTorch's error, or in a tile's."""
    if not isinstance(found, Exception):
        return True
    of_a_tile = case.tile > 0 and _named_layer(found) is not None
    return (
        of_a_tile or "modified by an inplace operation" in str(found) or _is_of_the_ordinary_model(case, found, device)
    )


def _names_the_layer(case: Case, error: object, changed: int) -> bool:
    """Return whether a mismatch names the changed layer or, if several changed, an existing one."""
    named = _named_layer(error)
    if named is None or named >= case.layers:
        return False
    return case.between not in OF_ONE_LAYER or named - changed in (0, 1 if _evaluates_the_layer_before(case) else 0)


def _named_layer(error: object) -> int | None:
    found = re.search(r"[Ll]ayer (\d+)", str(error)) if isinstance(error, RebuildMismatchError) else None
    return int(found[1]) if found else None


def _evaluates_the_layer_before(case: Case) -> bool:
    return "previous_update" in case.predictors or from_dict(case.dynamics).evaluations_per_step > 1


def _is_of_the_ordinary_model(case: Case, error: object, device: torch.device) -> bool:
    """Return whether the ordinary model with the same parts and passes ends in an error of the same kind."""
    # Only this library raises mismatches, but the tiles of an ordinary model can raise them too.
    if isinstance(error, RebuildMismatchError):
        return False
    return type(_run(case, ordinary_model(case, device)).found) is type(error)


def _say(error: object) -> str:
    return f"{type(error).__name__}: {error}"


def _same(left: Tensor | None, right: Tensor | None) -> bool:
    if left is None or right is None or left.dtype != right.dtype:
        return left is right
    return left.shape == right.shape and torch.equal(_bytes(left), _bytes(right))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def _run(case: Case, model: Any) -> _Result:
    """Run the passes of a set-up on a model of it, on its device and on one thread of the CPU."""
    device = next(model.parameters()).device
    batches, changed, layer = draw_batches(case, device), False, 0

    def loss(number: int) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=case.autocast):
            value: Tensor = model(**batches[number]).loss
        return value

    torch.set_num_threads(1)
    try:
        if _has_budget(model) and case.seed % 4:  # it stores layers from the second pass of a batch shape on
            torch.manual_seed(case.seed + 1)
            loss(0)
        torch.manual_seed(case.seed + 1)
        order = ORDERS[case.order]
        losses = [loss(number) for number in range(order.batches)]
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        changed, layer = _happen(case, model, batches, loss)
        parts = enumerate(order.run(losses, parameters))
        none = torch.zeros((), device=device)
        found = {f"part {index}": none if part is None else part.detach() for index, part in parts}
        grown = {name: one.grad.detach().clone() for name, one in model.named_parameters() if one.grad is not None}
        # A gradient that has a graph of its own is part of a cycle that is never freed.
        model.zero_grad()
        return _Result(found | grown, changed, layer)
    except Exception as error:
        return _Result(error, changed, layer)


def _has_budget(model: Any) -> bool:
    stack = reversible_stack(model)
    return stack is not None and isinstance(stack.activations, Budget)


def _happen(case: Case, model: Any, batches: list[dict[str, Any]], loss: Callable[[int], Tensor]) -> tuple[bool, int]:
    """Run the event between the passes of a set-up; return whether it changed anything, and the index of its layer."""
    draw = random.Random(case.seed)
    index, layer = draw.choice(list(enumerate(find_stack(model).layers)))
    weight = draw.choice(list(layer.parameters()))
    event = (HARMLESS | HARMFUL)[case.between]
    return event(Scene(model, layer, weight, batches, loss, draw, case.dropout > 0)), index


def _has_recurrence(case: Case) -> bool:
    """Return whether one backward pass in float64, through a recurrence that steps by block, gives the gradient."""
    return (
        case.dtype == "float64"
        and case.states in ("auto", "int64")  # 32 bits round further than the recurrence
        and not case.autocast
        and not case.dropout
        and case.order == "once"
        and case.between in HARMLESS
        and not case.chunk
        and from_dict(case.dynamics).granularity == "block"
    )


def _distance_from_recurrence(case: Case, stored: Gradients, device: torch.device) -> float | None:
    """Return the distance of the stored gradient from that of the recurrence; None if it is not continuous."""
    model = reversible_model(case, "store", device)
    layers = find_stack(model).layers
    if any("expert" in name or "router" in name for layer in layers for name, _ in layer.named_modules()):
        return None  # the choice of experts is discontinuous
    predictors = [copy.deepcopy(predictor) for predictor in update_predictors(model)] or None
    names = {parameter: name for name, parameter in model.named_parameters()}
    copies = [
        (names[original], parameter)
        for predictor, copied in zip(update_predictors(model), predictors or (), strict=True)
        for original, parameter in zip(predictor.parameters(), copied.parameters(), strict=True)
    ]
    make_residual(model)
    torch.manual_seed(case.seed + 1)
    # transformers takes packed documents for a cached text if there is a cache, which models create by default.
    model.config.use_cache = False
    with Recurrence(from_dict(case.dynamics), predictors).on(layers):
        model(**draw_batches(case, device)[0]).loss.backward()
    theirs = {name: parameter.grad for name, parameter in (*model.named_parameters(), *copies)}
    return _distance(stored, {name: gradient for name, gradient in theirs.items() if gradient is not None})


def _distance(stored: Gradients, theirs: Gradients) -> float | None:
    """Return the largest distance of a tensor, relative to its size or to `SMALL` of all; None if all are zero.

    A missing gradient counts as zero.
    """
    names = stored.keys() | theirs.keys()
    zero = torch.zeros(())
    pairs = [(stored.get(name, zero).double(), theirs.get(name, zero).double()) for name in names]
    size = float(sum(gradient.double().square().sum() for gradient in theirs.values())) ** 0.5
    return (
        max(float((mine - other).norm()) / max(float(other.norm()), SMALL * size) for mine, other in pairs)
        if size
        else None
    )
