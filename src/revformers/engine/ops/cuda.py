"""The steps of two states as one Triton kernel, for CUDA; equal to `ops.cpu` to the bit.

A step reads what it needs once and writes the new state once. Coefficients are arguments of the kernel and not
constants, so that blends that differ from layer to layer, or change while training, compile nothing new; only the
direction, the number of packed bits, and whether a division is a shift, make another kernel.

A program takes eight rows of `LANES` values that lie an eighth of a packing group apart: the values that share a byte.
"""

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from revformers.dynamics.base import Coefficients
from revformers.engine import packing
from revformers.engine.rational import whole_and_rest

LANES = 128
"""Values in a row of a program."""

_ROW = packing.GROUP // 8


def advance(
    previous: Tensor,
    current: Tensor,
    coefficients: Coefficients,
    update: Tensor,
    side_information: Tensor | None,
    fraction_bits: int,
) -> None:
    """Replace X[l-1] by X[l+1]; see `ops.advance`."""
    _launch(previous, current, coefficients, update, side_information, fraction_bits, forward=True)


def retreat(
    successor: Tensor,
    current: Tensor,
    coefficients: Coefficients,
    update: Tensor,
    side_information: Tensor | None,
    fraction_bits: int,
) -> Tensor | None:
    """Replace X[l+1] by X[l-1]; see `ops.retreat`."""
    if abs(coefficients.previous) <= 1:
        _launch(successor, current, coefficients, update, side_information, fraction_bits, forward=False)
        return None
    possible = torch.ones((), dtype=torch.uint8, device=successor.device)
    _launch(successor, current, coefficients, update, possible, fraction_bits, forward=False)
    return possible.bool()


def read(states: Tensor, dtype: torch.dtype, fraction_bits: int) -> Tensor:
    """Return the numbers that `states` (integers, contiguous) hold, rounded to `dtype`."""
    values = torch.empty(states.shape, dtype=dtype, device=states.device)
    if states.numel():
        with torch.cuda.device_of(states):
            _read[(triton.cdiv(states.numel(), 8 * LANES),)](
                states, values, states.numel(), WIDE=dtype == torch.float64, POINT=fraction_bits, BLOCK=8 * LANES
            )
    return values


def _launch(
    target: Tensor,
    current: Tensor,
    coefficients: Coefficients,
    update: Tensor,
    extra: Tensor | None,
    fraction_bits: int,
    *,
    forward: bool,
) -> None:
    """Step all values.

    `extra` is the side information, or on the way back with |a| > 1, where there is none, what the kernel sets to 0 if
    it meets an impossible state.
    """
    if not target.numel():
        return
    a = coefficients.previous
    whole, b = whole_and_rest(coefficients.current)
    bits = 0 if extra is None else coefficients.side_information_bits
    scale = coefficients.update * 2.0**fraction_bits
    divisor = a.denominator if forward else abs(a.numerator)  # to multiply by a, or to undo that
    with torch.cuda.device_of(target):
        _step[(_programs(target.numel()),)](
            target,
            current,
            update.contiguous(),
            target if extra is None else extra,  # Triton needs a pointer, used or not
            target.numel(),
            # Triton would round a float argument to float32.
            struct.unpack("<q", struct.pack("<d", scale))[0],
            abs(a.numerator),
            a.denominator,
            _sign(a.numerator),
            _shift_or_divisor(divisor),
            whole,
            abs(b.numerator),
            b.denominator // 2,
            _sign(b.numerator),
            _shift_or_divisor(b.denominator),
            FORWARD=forward,
            SHIFT_A=_is_shift(divisor),
            SHIFT_B=_is_shift(b.denominator),
            HAS_B=coefficients.current != 0,
            EXPANDS=extra is not None and not bits,
            BITS=bits,
            WIDE=update.dtype == torch.float64,
            ROW=_ROW,
            LANES=LANES,
        )


def _programs(count: int) -> int:
    whole, rest = divmod(count, packing.GROUP)
    return whole * (_ROW // LANES) + triton.cdiv(triton.cdiv(rest, 8), LANES)


def _sign(value: int) -> int:
    return -1 if value < 0 else 1


def _is_shift(divisor: int) -> bool:
    return divisor & (divisor - 1) == 0


def _shift_or_divisor(divisor: int) -> int:
    return divisor.bit_length() - 1 if _is_shift(divisor) else divisor


# a = sign_a n_a / d_a, b = whole + sign_b n_b / d_b, half_b = floor(d_b / 2). A power of two divides as its exponent.
_NOT_CONSTANT = ["count", "scale", "n_a", "d_a", "sign_a", "divisor_a", "whole", "n_b", "half_b", "sign_b", "divisor_b"]


@triton.jit(do_not_specialize=_NOT_CONSTANT)
def _step(
    target,
    current,
    update,
    extra,
    count,
    scale,
    n_a,
    d_a,
    sign_a,
    divisor_a,
    whole,
    n_b,
    half_b,
    sign_b,
    divisor_b,
    FORWARD: tl.constexpr,
    SHIFT_A: tl.constexpr,
    SHIFT_B: tl.constexpr,
    HAS_B: tl.constexpr,
    EXPANDS: tl.constexpr,
    BITS: tl.constexpr,
    WIDE: tl.constexpr,
    ROW: tl.constexpr,
    LANES: tl.constexpr,
):
    group, lanes, lane, row, index, inside = _place(count, ROW, LANES)
    packed = extra + group * ROW * BITS
    # 64 bits, because products need them; storing to 32 bits drops the upper half.
    state = tl.load(target + index, mask=inside, other=0).to(tl.int64)
    added = _quantise(tl.load(update + index, mask=inside, other=0), scale, WIDE)
    if HAS_B:
        now = tl.load(current + index, mask=inside, other=0).to(tl.int64)
        product_b = now * n_b + half_b
        added += now * whole + _floor_divide(product_b, divisor_b, SHIFT_B) * sign_b
    if FORWARD:
        product = state * n_a + d_a // 2
        quotient = _floor_divide(product, divisor_a, SHIFT_A)
        if BITS:
            remainder = (product - quotient * d_a).to(tl.int32) // n_a
            _pack(packed, tl.where(inside, remainder, 0), row, lane, lanes, BITS)
        state = quotient * sign_a + added
    else:
        lowest = (state - added) * sign_a * d_a - d_a // 2
        state = _floor_divide(lowest + (n_a - 1), divisor_a, SHIFT_A)
        if EXPANDS:
            tl.store(extra + row * 0 + lane * 0, 0, mask=inside & (state * n_a - lowest >= d_a))
        if BITS:
            state += _unpack(packed, row, lane, lanes, BITS)
    tl.store(target + index, state, mask=inside)


@triton.jit(do_not_specialize=["count"])
def _read(states, values, count, WIDE: tl.constexpr, POINT: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    state = tl.load(states + index, mask=index < count, other=0)
    wide = state.to(tl.float64) if WIDE else state.to(tl.float32)
    tl.store(values + index, (wide * 2.0**-POINT).to(values.dtype.element_ty), mask=index < count)


@triton.jit
def _place(count, ROW: tl.constexpr, LANES: tl.constexpr):
    """Where a program is: its group, the lanes of that group, its own lanes, and the values that it takes."""
    group = (tl.program_id(0) // (ROW // LANES)).to(tl.int64)
    start = group * (8 * ROW)
    lanes = tl.minimum((count - start + 7) // 8, ROW)
    lane = (tl.program_id(0) % (ROW // LANES) * LANES + tl.arange(0, LANES))[None, :]
    row = tl.arange(0, 8)[:, None]
    index = start + row * lanes + lane
    return group, lanes, lane, row, index, (lane < lanes) & (index < count)


@triton.jit
def _quantise(update, scale, WIDE: tl.constexpr):
    exact = scale.to(tl.int64).to(tl.float64, bitcast=True)
    scaled = update * exact if WIDE else update.to(tl.float32) * exact.to(tl.float32)
    return scaled.to(tl.int64)


@triton.jit
def _floor_divide(values, divisor, SHIFT: tl.constexpr):
    quotient = values >> divisor if SHIFT else values // divisor
    if not SHIFT:
        # Triton divides like C, rounding towards zero; if it rounds down instead, this subtracts 0.
        quotient -= (values < quotient * divisor).to(tl.int64)
    return quotient


@triton.jit
def _pack(packed, values, row, lane, lanes, BITS: tl.constexpr):
    for step in tl.static_range(4):
        if BITS & (8 >> step):
            _pack_field(packed, values, row, lane, lanes, BITS, 8 >> step)


@triton.jit
def _pack_field(packed, values, row, lane, lanes, BITS: tl.constexpr, WIDTH: tl.constexpr):
    SHIFT: tl.constexpr = BITS // (2 * WIDTH) * (2 * WIDTH)
    field = ((values >> SHIFT) & ((1 << WIDTH) - 1)) << (row // WIDTH * WIDTH)
    for byte in tl.static_range(WIDTH):
        together = tl.sum(tl.where(row % WIDTH == byte, field, 0), axis=0)[None, :]
        tl.store(packed + (SHIFT + byte) * lanes + lane, together.to(tl.uint8), mask=lane < lanes)


@triton.jit
def _unpack(packed, row, lane, lanes, BITS: tl.constexpr):
    values = row * 0 + lane * 0
    for step in tl.static_range(4):
        if BITS & (8 >> step):
            values |= _unpack_field(packed, row, lane, lanes, BITS, 8 >> step)
    return values


@triton.jit
def _unpack_field(packed, row, lane, lanes, BITS: tl.constexpr, WIDTH: tl.constexpr):
    SHIFT: tl.constexpr = BITS // (2 * WIDTH) * (2 * WIDTH)
    byte = tl.load(packed + (SHIFT + row % WIDTH) * lanes + lane, mask=lane < lanes, other=0).to(tl.int32)
    return ((byte >> (row // WIDTH * WIDTH)) & ((1 << WIDTH) - 1)) << SHIFT
