"""A row of a plan: the memory and time that one way to train needs."""

from dataclasses import dataclass

from revformers.planning.setups import title
from revformers.planning.timeline import MemoryByCategory


@dataclass(frozen=True)
class SetupCost:
    """The memory and time that one way to train needs.

    Attributes:
        name: "store", "checkpoint", "offload", "rebuild" or "budget".
        bits: side information per element and layer, of "rebuild" and "budget".
        memory: of a step on one sequence, bytes by category.
        host: host memory that the step holds, bytes.
        largest_batch: sequences that fit; 0 if not even one fits.
        host_of_largest_batch: host memory that a step on the largest batch holds, bytes.
        longest_context: tokens of a single sequence that fit, a multiple of 256, accurate to one percent.
        operations: floating-point operations of a step, relative to "store".
        time: predicted time of a step, relative to "store".

    """

    name: str
    bits: int | None
    memory: MemoryByCategory
    host: int
    largest_batch: int
    host_of_largest_batch: int
    longest_context: int
    operations: float
    time: float

    @property
    def title(self) -> str:
        """The name, followed by the bits."""
        return title(self.name, self.bits)
