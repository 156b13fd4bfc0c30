"""Multiplication of integers by a fraction, and its exact inverse.

For a = n/d > 0 the product is Y = floor((n X + h) / d) with h = floor(d/2), the nearest integer to aX. The X that
share one Y are consecutive: there are at most ceil(1/a) of them and X is their first, ceil((d Y - h) / n), plus a
remainder r. For a >= 1 there is only one, and nothing needs to be kept. A negative a negates Y.

For a > 1 not every integer is a product. Division would map an integer next to a product to the same result, and so
hide an error of the caller; it therefore reports whether it was given products.
"""

from fractions import Fraction

import torch
from torch import Tensor


def whole_and_rest(factor: Fraction) -> tuple[int, Fraction]:
    """Return the integer nearest to `factor`, and what is left, at most 1/2 in magnitude: 15/16 is 1 and -1/16.

    The product by the rest is often a shift, and it fits into 32 bits where that by the factor would not.
    """
    whole = round(factor)
    return whole, factor - whole


def multiply_(states: Tensor, factor: Fraction, *, keep_remainder: bool) -> Tensor | None:
    """Replace `states` (integers, any shape) by the nearest integers to `factor * states`.

    Returns:
        Where |factor| < 1 and `keep_remainder`: r as uint8 of the same shape, in [0, ceil(1/|factor|)), which
        `divide_` needs. Otherwise None.

    """
    numerator, denominator = abs(factor.numerator), factor.denominator
    remainder = None
    if numerator != 1:
        states.mul_(numerator)
    if denominator != 1:
        states.add_(denominator // 2)
        if keep_remainder and numerator < denominator:
            remainder = _floor_divide_with_remainder_(states, denominator)
            if numerator != 1:
                remainder = remainder // numerator
        else:
            floor_divide_(states, denominator)
    if factor < 0:
        states.neg_()
    return remainder


def divide_(products: Tensor, factor: Fraction, remainder: Tensor | None) -> Tensor | None:
    """Undo `multiply_`: replace `products` (integers) by the states that gave them, with the remainder it returned.

    Returns:
        Where |factor| > 1: bool[], whether every one of `products` is a product. Otherwise None, as every integer is.

    """
    numerator, denominator = abs(factor.numerator), factor.denominator
    if factor < 0:
        products.neg_()
    if denominator != 1:
        products.mul_(denominator).sub_(denominator // 2)
    lowest = products.clone() if numerator > denominator else None
    if numerator != 1:
        floor_divide_(products.add_(numerator - 1), numerator)
    if remainder is not None:
        products.add_(remainder)
    return None if lowest is None else (lowest.neg_().add_(products, alpha=numerator) < denominator).all()


def floor_divide_(values: Tensor, divisor: int) -> None:
    """Replace `values` (integers) by floor(values / divisor); by a shift where it can, as division is slow."""
    if divisor & (divisor - 1):
        values.div_(divisor, rounding_mode="floor")
    elif divisor != 1:
        values.bitwise_right_shift_(divisor.bit_length() - 1)


def _floor_divide_with_remainder_(values: Tensor, divisor: int) -> Tensor:
    """Replace `values` by floor(values / divisor), divisor at most 256, and return values mod divisor as uint8."""
    # Conversion keeps the low eight bits, and arithmetic modulo 256 is all that a remainder below 256 needs.
    narrow = values.to(torch.uint8)
    floor_divide_(values, divisor)
    if divisor & (divisor - 1):
        return narrow.sub_(values.to(torch.uint8).mul_(divisor))
    return narrow.bitwise_and_(divisor - 1)
