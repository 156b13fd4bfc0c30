"""The two fixed-point states that a reversible stack holds, and the step that moves them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from revformers.dynamics.base import Coefficients
from revformers.exact.fixed_point import quantise, read
from revformers.exact.packing import pack, unpack
from revformers.exact.rational import divide_, multiply_


@dataclass
class StatePair:
    """X[l-1] and X[l] of p[l+1] = a p[l-1] + b p[l] + c f(p[l]), in fixed point.

    Both buffers belong to the pair and are overwritten by its steps.

    Attributes:
        previous: X[l-1], int64 of shape (batch, tokens, width).
        current: X[l], the same.

    """

    previous: Tensor
    current: Tensor

    def advance(self, coefficients: Coefficients, update: Tensor, *, keep_side_information: bool) -> Tensor | None:
        """Move from (X[l-1], X[l]) to (X[l], X[l+1]).

        Args:
            coefficients: a, b and c of the step.
            update: f(p[l]), floating dtype, the shape of the states.
            keep_side_information: whether `retreat` will be asked to undo this step.

        Returns:
            Where |a| < 1 and the step is to be undone: what `retreat` needs, packed to
            `coefficients.side_information_bits` bits an element. Otherwise None.

        """
        successor = self.previous
        remainder = None
        if coefficients.previous:
            remainder = multiply_(successor, coefficients.previous, keep_remainder=keep_side_information)
        else:
            successor.zero_()
        self._add_current(successor, coefficients, self.current, sign=1)
        successor.add_(quantise(update, coefficients.update))
        self.previous, self.current = self.current, successor
        return None if remainder is None else pack(remainder, coefficients.side_information_bits)

    def retreat(self, coefficients: Coefficients, update: Tensor, side_information: Tensor | None) -> Tensor | None:
        """Undo `advance`: move from (X[l], X[l+1]) back to (X[l-1], X[l]).

        Args:
            coefficients: a, b and c of the step.
            update: f(p[l]), equal to the bit to the one that `advance` was given.
            side_information: what `advance` returned.

        Returns:
            Where |a| > 1: bool[], whether X[l+1] is the successor of any state at all. Otherwise None, as it always is.

        """
        predecessor = self.current
        predecessor.sub_(quantise(update, coefficients.update))
        self._add_current(predecessor, coefficients, self.previous, sign=-1)
        remainder = None
        if side_information is not None:
            remainder = unpack(side_information, coefficients.side_information_bits, predecessor.shape)
        possible = divide_(predecessor, coefficients.previous, remainder)
        self.previous, self.current = predecessor, self.previous
        return possible

    def read_previous(self, dtype: torch.dtype) -> Tensor:
        """Return p[l-1] in `dtype`."""
        return read(self.previous, dtype)

    def read_current(self, dtype: torch.dtype) -> Tensor:
        """Return p[l] in `dtype`."""
        return read(self.current, dtype)

    def checksum(self) -> Tensor:
        """Return the sums of both states modulo 2**64, int64[2]: a change in one unit of one element changes them."""
        return torch.stack([self.previous.sum(), self.current.sum()])

    @staticmethod
    def _add_current(target: Tensor, coefficients: Coefficients, current: Tensor, *, sign: int) -> None:
        """Add sign * round(b X[l]) to `target`."""
        factor = coefficients.current
        if factor.denominator == 1:
            if factor:
                target.add_(current, alpha=sign * factor.numerator)
            return
        product = current.clone()
        multiply_(product, factor, keep_remainder=False)
        target.add_(product, alpha=sign)
