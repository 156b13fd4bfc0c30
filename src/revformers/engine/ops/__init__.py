"""The steps of two states as operators of PyTorch: `revformers::advance`, `revformers::retreat`, `revformers::read`.

Dispatch modes, fake tensors, torch.compile and torch.export see them as they see PyTorch's own. They are registered by
their schemas: `torch.library.custom_op` registers the same operators, but runs much more Python around each call.
"""

import os
from collections.abc import Callable
from fractions import Fraction
from functools import cache, lru_cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.library import Library, fallthrough_kernel, register_fake

from revformers.dynamics.base import Coefficients
from revformers.engine.ops import cpu as plain

SWITCH = "REVFORMERS_KERNELS"
"""Environment variable; "plain" selects PyTorch's own operations on CUDA as well."""

_LIBRARY = Library("revformers", "FRAGMENT")
_COEFFICIENTS = "int a_numerator, int a_denominator, int b_numerator, int b_denominator, float c, int fraction_bits"


def advance(
    previous: Tensor,
    current: Tensor,
    coefficients: Coefficients,
    update: Tensor,
    side_information: Tensor | None,
    fraction_bits: int,
) -> None:
    """Replace X[l-1] by X[l+1].

    Args:
        previous: X[l-1], int32 or int64, contiguous; overwritten.
        current: X[l], the same shape and dtype.
        coefficients: a, b and c.
        update: f(p[l]), floating dtype, the same shape.
        side_information: uint8[packed_size], written; None if it is not needed.
        fraction_bits: binary digits after the point of the states.

    Raises:
        ValueError: on CUDA, if the environment variable REVFORMERS_KERNELS is set to anything other than "plain".

    """
    ADVANCE(previous, current, update, *_numbers(coefficients), fraction_bits, side_information)


def retreat(
    successor: Tensor,
    current: Tensor,
    coefficients: Coefficients,
    update: Tensor,
    side_information: Tensor | None,
    fraction_bits: int,
) -> Tensor | None:
    """Replace X[l+1] by X[l-1]: undo `advance`; the same arguments and errors, `successor` overwritten.

    Returns:
        Where |a| > 1: bool[], whether X[l+1] is the successor of any state at all. Otherwise None, as it always is.

    """
    expands = abs(coefficients.previous) > 1
    possible = torch.ones((), dtype=torch.bool, device=successor.device) if expands else None
    RETREAT(successor, current, update, *_numbers(coefficients), fraction_bits, side_information, possible)
    return possible


def read(states: Tensor, dtype: torch.dtype, fraction_bits: int) -> Tensor:
    """Return the numbers that `states` (integers, contiguous) hold, rounded to `dtype`; the errors of `advance`."""
    result: Tensor = READ(states, dtype, fraction_bits)
    return result


def kernels_for(states: Tensor) -> ModuleType:
    """Return the module whose `advance`, `retreat` and `read` move `states`.

    That is `ops.cuda` on CUDA where Triton is installed, and `ops.cpu` elsewhere. Both give the same bits.

    Raises:
        ValueError: on CUDA, if the environment variable REVFORMERS_KERNELS is set to anything other than "plain".

    """
    if not states.is_cuda or not _fused_wanted():
        return plain
    # Triton is large, and only PyTorch's builds for GPUs bring it.
    from revformers.engine.ops import cuda as fused

    return fused


@cache
def _fused_wanted() -> bool:
    switch = os.environ.get(SWITCH, "")
    if switch not in ("", "plain"):
        raise ValueError(f'The environment variable {SWITCH} can only be set to "plain", not {switch!r}.')
    return not switch and find_spec("triton") is not None


def _numbers(coefficients: Coefficients) -> tuple[int, int, int, int, float]:
    a, b = coefficients.previous, coefficients.current
    return a.numerator, a.denominator, b.numerator, b.denominator, coefficients.update


@lru_cache(maxsize=1024)
def _coefficients(a: int, denominator_a: int, b: int, denominator_b: int, c: float) -> Coefficients:
    return Coefficients(Fraction(a, denominator_a), Fraction(b, denominator_b), c)


def _advance(previous: Tensor, current: Tensor, update: Tensor, *rest: Any) -> None:
    *numbers, fraction_bits, side_information = rest
    coefficients = _coefficients(*numbers)
    kernels_for(previous).advance(previous, current, coefficients, update, side_information, fraction_bits)


def _retreat(successor: Tensor, current: Tensor, update: Tensor, *rest: Any) -> None:
    *numbers, fraction_bits, side_information, possible = rest
    coefficients = _coefficients(*numbers)
    found = kernels_for(successor).retreat(successor, current, coefficients, update, side_information, fraction_bits)
    if possible is not None and found is not None:
        possible.copy_(found)


def _read(states: Tensor, dtype: torch.dtype, fraction_bits: int) -> Tensor:
    result: Tensor = kernels_for(states).read(states, dtype, fraction_bits)
    return result


def _writes_only(*_: Any) -> None:
    """Do nothing: the fake kernel of an operator that only writes to its arguments."""


def _read_fake(states: Tensor, dtype: torch.dtype, fraction_bits: int) -> Tensor:
    return states.new_empty(states.shape, dtype=dtype)


def _register(name: str, signature: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Register an operator that is not part of autograd's graph, and return it.

    PyTorch keeps it for the whole process, so a second import of this module returns the operator of the first.
    """
    if not hasattr(torch.ops.revformers, name):
        _LIBRARY.define(name + signature)
        # One kernel for all devices except the fake one, because only `kernels_for` chooses what moves the states.
        _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
        _LIBRARY.impl(name, fallthrough_kernel, "Autograd")
        register_fake(f"revformers::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.revformers, name).default


ADVANCE = _register(
    "advance",
    f"(Tensor(a!) previous, Tensor current, Tensor update, {_COEFFICIENTS}, Tensor(b!)? side_information) -> ()",
    _advance,
    _writes_only,
)
RETREAT = _register(
    "retreat",
    f"(Tensor(a!) successor, Tensor current, Tensor update, {_COEFFICIENTS}, Tensor? side_information, "
    "Tensor(b!)? possible) -> ()",
    _retreat,
    _writes_only,
)
READ = _register("read", "(Tensor states, ScalarType dtype, int fraction_bits) -> Tensor", _read, _read_fake)

KERNELS: dict[Any, Callable[..., Any]] = {ADVANCE: _advance, RETREAT: _retreat, READ: _read}
"""The kernels of the operators, which can also be called directly, on tensors of any device."""
