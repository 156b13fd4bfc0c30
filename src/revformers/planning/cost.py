"""What one way to train takes: a row of a plan."""

from dataclasses import dataclass

from revformers.planning.setups import title
from revformers.planning.timeline import MemoryByCategory


@dataclass(frozen=True)
class SetupCost:
    """What one way to train takes.

    Attributes:
        name: "store", "checkpoint", "offload", "rebuild" or "budget".
        bits: side information an element a layer, of "rebuild" and "budget".
        memory: of a step of one sequence, bytes by category.
        host: what lies in host memory meanwhile, bytes.
        largest_batch: sequences that fit; 0 where not one does.
        host_of_largest_batch: bytes.
        longest_context: tokens of a single sequence that fit, a multiple of 256, found to one percent.
        operations: floating-point operations of a step, relative to "store".
        time: of a step as predicted, relative to "store".

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
        """The name, with the bits."""
        return title(self.name, self.bits)
