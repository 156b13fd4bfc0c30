"""Rebuilding the states of a network by its inverse: in floating point, and as this library does, in fixed point."""

from collections.abc import Sequence

import torch
from torch import Tensor

from revformers.analysis.walk import NamedStep, require_inverses, state_before, step_back, walk
from revformers.dynamics.base import Start
from revformers.engine.fixed_point import FixedPoint
from revformers.engine.states import StatePair


@torch.no_grad()
def float_reversal_errors(
    steps: Sequence[NamedStep], embedding: Tensor, start: Start, dtype: torch.dtype
) -> list[float]:
    """Return the relative errors of the states that the inverse rebuilds, with states in `dtype`.

    The forward pass keeps its states; then the inverse starts from the last two and evaluates every field at the state
    that it has rebuilt, as the backward pass would.

    Args:
        steps: n steps, whose fields compute in the dtype of `embedding`.
        embedding: p[0].
        start: of the dynamics.
        dtype: of the states, e.g. torch.float32.

    Returns:
        n + 2 numbers, |rebuilt - true| / |true| of p[-1], p[0], ..., p[n]; the last two are 0. If p[-1] is 0,
        its number is |rebuilt|.

    Raises:
        ValueError: if a step has no inverse.

    """
    require_inverses(steps)
    states = walk(steps, embedding, start, dtype)
    current, following = states[-2], states[-1]
    errors = [0.0, 0.0]
    for step, true in zip(reversed(steps), reversed(states[:-2]), strict=True):
        update = step.field(current.to(embedding.dtype))
        current, following = step_back(current, following, update, step.coefficients), current
        errors.append(_relative_error(current, true))
    return errors[::-1]


@torch.no_grad()
def exact_reversal_errors(
    steps: Sequence[NamedStep], embedding: Tensor, start: Start, fixed_point: FixedPoint
) -> list[float]:
    """Return the same with the library's states: fixed point, with side information where |a| < 1.

    Exact zeros, unless a field is evaluated to other bits the second time. The caller sees to it that the states do not
    leave the range of `fixed_point`; nothing here would notice.

    Raises:
        ValueError: if a step has no inverse.

    """
    require_inverses(steps)
    current = fixed_point.quantise(embedding.contiguous())
    pair = StatePair(state_before(current, start), current, fixed_point)
    kept, information = [pair.previous.clone(), pair.current.clone()], []
    for step in steps:
        update = step.field(pair.read_current(embedding.dtype))
        information.append(pair.advance(step.coefficients, update, keep_side_information=True))
        kept.append(pair.current.clone())
    errors = [0.0, 0.0]
    for step, extra, true in zip(reversed(steps), reversed(information), reversed(kept[:-2]), strict=True):
        update = step.field(pair.read_previous(embedding.dtype))
        pair.retreat(step.coefficients, update, extra)
        errors.append(_relative_error(pair.previous.double(), true.double()))
    return errors[::-1]


def _relative_error(rebuilt: Tensor, true: Tensor) -> float:
    """Return |rebuilt - true| / |true|, and |rebuilt| if `true` is 0; infinite if `rebuilt` is not finite."""
    difference, size = (rebuilt.double() - true.double()).norm().item(), true.double().norm().item()
    error = difference / size if size else difference
    return error if error == error else float("inf")
