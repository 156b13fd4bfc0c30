"""The format in which a model holds its states, chosen by the user; `engine.fixed_point` is that of one pass."""

import re
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from revformers.engine.fixed_point import INT64, FixedPoint

Kind = Literal["auto", "int32", "int64"]

FRACTION_BITS = 16
"""Binary digits after the point of 32-bit states, unless a model needs more range.

They hold |x| up to 32,512 in steps of 2**-16. The layers of a bfloat16 model read a state of magnitude 2 to 6 in steps
of 2**-6 or 2**-5: the states are hundreds of times finer. More digits would cost range and give nothing to bfloat16.
"""

LEAST_FRACTION_BITS = 8
"""With 8 digits, 32-bit states hold what 64-bit states hold, 2**22; fewer would only be coarser."""

MOST_FRACTION_BITS = 24
"""With 24 digits, 32-bit states hold 127, in the steps of float32 just below 1."""


@dataclass(frozen=True)
class StateFormat:
    """How many bits a model's states have, and where their binary point is.

    The format of a pass follows from this and from the precision of the layers alone, never from the numbers. So two
    passes on the same batch give the same bits, under every activation policy.

    Attributes:
        kind: ``"int32"``, ``"int64"``, or ``"auto"``: int32 if layers compute in bfloat16 or float16 (by their dtype or
            under autocast, which leaves float64 as it is), and int64 if they compute in float32 or float64.
        fraction_bits: binary digits after the point of 32-bit states, 8 to 24, 16 if they are left out; None for
            ``"int64"``, whose states always have 30.

    Raises:
        TypeError: if `fraction_bits` is no integer.
        ValueError: for another kind, digits out of range, or digits for 64-bit states.

    """

    kind: Kind = "auto"
    fraction_bits: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"States are {', '.join(get_args(Kind)[:-1])} or {get_args(Kind)[-1]}, not {self.kind!r}.")
        if self.fraction_bits is None:
            if self.kind != "int64":
                object.__setattr__(self, "fraction_bits", FRACTION_BITS)
            return
        if isinstance(self.fraction_bits, bool) or not isinstance(self.fraction_bits, int):
            raise TypeError(f"The binary digits of states are an integer, not {self.fraction_bits!r}.")
        if self.kind == "int64":
            raise ValueError(
                f"64-bit states always have {INT64.fraction_bits} binary digits after the point; leave out the "
                f"{self.fraction_bits}, or choose int32 or auto."
            )
        if not LEAST_FRACTION_BITS <= self.fraction_bits <= MOST_FRACTION_BITS:
            raise ValueError(
                f"32-bit states have {LEAST_FRACTION_BITS} to {MOST_FRACTION_BITS} binary digits after the point, not "
                f"{self.fraction_bits}."
            )

    def __str__(self) -> str:
        """Return the format as text, as in recipes, commands and saved models; `parse_states` reads it."""
        return self.kind if self.fraction_bits in (FRACTION_BITS, None) else f"{self.kind}:{self.fraction_bits}"

    @property
    def in_words(self) -> str:
        """The format in words: its text, and the integers that it stands for."""
        if self.kind == "auto":
            return f"{self}: {self.in_32_bits}, for layers in bfloat16 or float16 and under autocast; otherwise {INT64}"
        return f"{self}: {INT64 if self.kind == 'int64' else self.in_32_bits}"

    @property
    def in_32_bits(self) -> FixedPoint:
        """The format of a pass in 32 bits, which ``"int64"`` never has."""
        assert self.fraction_bits is not None
        return FixedPoint(torch.int32, self.fraction_bits)

    def of_pass(self, dtype: torch.dtype, device: torch.device) -> FixedPoint:
        """Return the format of a pass that begins here, under autocast or not.

        Args:
            dtype: the dtype of the embedding.
            device: the device of the embedding.

        """
        device_type = device.type
        autocast = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
        narrow = dtype in (torch.bfloat16, torch.float16) or (autocast and dtype == torch.float32)
        return self.in_32_bits if self.kind == "int32" or (self.kind == "auto" and narrow) else INT64

    def at_most(self, other: "StateFormat") -> "StateFormat":
        """Return this format, with the digits of `other` if these are fewer and belong to 32-bit states."""
        if self.fraction_bits is None or other.fraction_bits is None:
            return self
        return replace(self, fraction_bits=min(self.fraction_bits, other.fraction_bits))

    def that_holds(self, magnitude: float) -> "StateFormat":
        """Return this format, with as few digits less that 32-bit states hold numbers of this magnitude.

        Args:
            magnitude: the largest to hold, head room included.

        Raises:
            ValueError: if 32-bit states cannot.

        """
        if self.fraction_bits is None:
            return self
        for digits in range(self.fraction_bits, LEAST_FRACTION_BITS - 1, -1):
            if magnitude <= FixedPoint(torch.int32, digits).maximum_magnitude:
                return replace(self, fraction_bits=digits)
        raise ValueError(
            f"32-bit states do not hold a magnitude of {magnitude:g}, which this model needs with head room; take "
            f'64-bit states (states="int64", or revformers.set_states(model, "int64")).'
        )


def parse_states(states: StateFormat | str) -> StateFormat:
    """Return the format that a text such as "auto", "int64" or "auto:14" names; a format is returned unchanged.

    Raises:
        TypeError: if `states` is neither.
        ValueError: if the text names no format.

    """
    if isinstance(states, StateFormat):
        return states
    if not isinstance(states, str):
        raise TypeError(f'The format of states is a text such as "auto", not {states!r}.')
    kind, colon, digits = states.partition(":")
    if kind not in get_args(Kind) or (colon and not re.fullmatch(r"\d{1,3}", digits)):
        raise ValueError(
            f"There are no states {states!r}; choose auto, int32 or int64, or give the binary digits after the point "
            f"of 32-bit states, as in auto:14."
        )
    return StateFormat(kind, int(digits) if colon else None)  # type: ignore[arg-type]
