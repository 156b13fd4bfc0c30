"""The two fixed-point states that a reversible stack holds, and the step that moves them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from revformers.dynamics.base import Coefficients
from revformers.engine import ops
from revformers.engine.fixed_point import INT64, FixedPoint
from revformers.engine.packing import packed_size
from revformers.engine.proof.checksum import checksum


@dataclass
class StatePair:
    """X[l-1] and X[l] of p[l+1] = a p[l-1] + b p[l] + c f(p[l]), in fixed point.

    Both buffers belong to the pair and are overwritten by its steps.

    Attributes:
        previous: X[l-1], integers of shape (batch, tokens, width), contiguous.
        current: X[l], the same.
        fixed_point: their format.

    """

    previous: Tensor
    current: Tensor
    fixed_point: FixedPoint

    @classmethod
    def empty(cls, device: torch.device) -> "StatePair":
        """Return a pair without elements, for passes in which no step is undone."""
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        return cls(nothing, nothing, INT64)

    def copy(self) -> "StatePair":
        """Return a copy with its own memory."""
        return StatePair(self.previous.clone(), self.current.clone(), self.fixed_point)

    def advance(self, coefficients: Coefficients, update: Tensor, *, keep_side_information: bool) -> Tensor | None:
        """Move from (X[l-1], X[l]) to (X[l], X[l+1]).

        Args:
            coefficients: a, b and c of the step.
            update: f(p[l]), floating dtype, the shape of the states.
            keep_side_information: whether `retreat` will be asked to undo this step.

        Returns:
            If |a| < 1 and the step is to be undone: what `retreat` needs, packed to
            `coefficients.side_information_bits` bits per element. Otherwise None.

        """
        side_information = None
        if keep_side_information and coefficients.side_information_bits:
            size = packed_size(self.previous.numel(), coefficients.side_information_bits)
            side_information = torch.empty(size, dtype=torch.uint8, device=self.previous.device)
        fraction_bits = self.fixed_point.fraction_bits
        ops.advance(self.previous, self.current, coefficients, update, side_information, fraction_bits)
        self.previous, self.current = self.current, self.previous
        return side_information

    def retreat(self, coefficients: Coefficients, update: Tensor, side_information: Tensor | None) -> Tensor | None:
        """Undo `advance`: move from (X[l], X[l+1]) back to (X[l-1], X[l]).

        Args:
            coefficients: a, b and c of the step.
            update: f(p[l]), equal to the bit to the one that `advance` was given.
            side_information: what `advance` returned.

        Returns:
            If |a| > 1: bool[], whether X[l+1] is the successor of any state. Otherwise None, because it always is.

        """
        fraction_bits = self.fixed_point.fraction_bits
        possible = ops.retreat(self.current, self.previous, coefficients, update, side_information, fraction_bits)
        self.previous, self.current = self.current, self.previous
        return possible

    def read_previous(self, dtype: torch.dtype) -> Tensor:
        """Return p[l-1] in `dtype`."""
        return ops.read(self.previous, dtype, self.fixed_point.fraction_bits)

    def read_current(self, dtype: torch.dtype) -> Tensor:
        """Return p[l] in `dtype`."""
        return ops.read(self.current, dtype, self.fixed_point.fraction_bits)

    def read_mean(self, dtype: torch.dtype) -> Tensor:
        """Return (p[l-1] + p[l]) / 2 in `dtype`."""
        total = self.previous.to(torch.int64, copy=True).add_(self.current)  # 32 bits may not hold it
        return ops.read(total, dtype, self.fixed_point.fraction_bits).mul_(0.5)

    def checksum(self) -> Tensor:
        """Return the `checksum` of both states, int64[2]: a change in one unit of one element changes them."""
        return torch.stack([checksum(self.previous), checksum(self.current)])
