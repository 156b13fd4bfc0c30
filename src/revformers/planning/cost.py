"""A row of a plan: the memory and time that one setup needs."""

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

from revformers.planning.setups import bits_of, name_of, title_of
from revformers.planning.timeline import MemoryByCategory
from revformers.setup import Setup


@dataclass(frozen=True)
class SetupCost:
    """The memory and time that one setup needs.

    Attributes:
        setup: the way to train.
        memory: of a step on one sequence, bytes by category.
        host: host memory that the step holds, bytes.
        largest_batch: sequences that fit; 0 if not even one fits.
        host_of_largest_batch: host memory that a step on the largest batch holds, bytes.
        longest_context: tokens of a single sequence that fit, a multiple of 256, accurate to one percent; or all
            that the model's table of positions allows. None for a budget, which is of a batch of the planned length.
        operations: floating-point operations of a step, relative to storing.
        time: predicted time of a step, relative to storing.
        limited_by_host: whether more sequences or tokens would fit if the host had more memory.

    """

    setup: Setup
    memory: MemoryByCategory
    host: int
    largest_batch: int
    host_of_largest_batch: int
    longest_context: int | None
    operations: float
    time: float
    limited_by_host: bool = False

    @property
    def way(self) -> Setup:
        """The setup without its tiles."""
        return replace(self.setup, mlp_tile=None)

    @property
    def title(self) -> str:
        """The name of the activation policy, followed by the bits of side information per element and layer."""
        return title_of(self.setup)

    def to_dict(self) -> dict[str, Any]:
        """Return the row in types that JSON keeps, with the name of the policy and the bits instead of the setup."""
        figures = vars(self) | {"memory": dataclasses.asdict(self.memory)}
        del figures["setup"]
        of_setup = {"name": name_of(self.setup), "bits": bits_of(self.setup), "mlp_tile": self.setup.mlp_tile}
        return {**of_setup, **figures}
