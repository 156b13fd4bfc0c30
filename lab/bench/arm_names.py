"""Arms as recipes name them: `rebuild`, `rebuild:2`, `budget`, `budget:20GiB`."""

from dataclasses import dataclass

from lab.bench.workload import ARM_NAMES, BUDGETS, PLAIN_ARMS, Arm
from revformers.byte_size import parse_size
from revformers.dynamics import BlendedMidpoint, Dynamics, Midpoint

MOST_BITS = 8


@dataclass(frozen=True)
class ArmName:
    """The name of an arm with what stands after its colon.

    Attributes:
        text: as the recipe has it.
        name: of the arm.
        bits: side information of ``rebuild:2``, bits an element a layer: the blended midpoint rule of 1/2^bits, the
            midpoint rule at 0; None leaves the dynamics to the recipe.
        budget: bytes of ``budget:20GiB`` and ``budget_checkpoint:20GiB``; None leaves them to the study.

    """

    text: str
    name: str
    bits: int | None = None
    budget: int | None = None

    @classmethod
    def parse(cls, text: str) -> "ArmName":
        """Read one name; raise ValueError in one sentence where it names no arm."""
        name, colon, option = text.partition(":")
        if name not in ARM_NAMES:
            raise ValueError(f"There is no arm {text!r}; choose among {', '.join(ARM_NAMES)}.")
        if not colon:
            return cls(text, name)
        if name == "rebuild" and option.isdecimal() and int(option) <= MOST_BITS:
            return cls(text, name, bits=int(option))
        if name in BUDGETS:
            return cls(text, name, budget=parse_size(option))
        raise ValueError(
            f"The arm {text!r} cannot be read: rebuild takes bits of side information from 0 to {MOST_BITS}, as in "
            f"rebuild:2, budget and budget_checkpoint a size, as in budget:20GiB, and the others nothing."
        )

    @property
    def open(self) -> bool:
        """Whether the study has to say how large the budget is."""
        return self.name in BUDGETS and self.budget is None

    def dynamics(self, own: Dynamics) -> Dynamics:
        """Return the dynamics of this arm; `own` are the recipe's."""
        if self.bits is None:
            return own
        return BlendedMidpoint(f"1/{2**self.bits}") if self.bits else Midpoint()

    def arm(self, own: Dynamics, budget: int | None = None) -> Arm:
        """Return the arm; `own` are the recipe's dynamics, `budget` the bytes of an open one."""
        if self.name in PLAIN_ARMS:
            return Arm(self.name)
        return Arm(self.name, self.dynamics(own).to_dict(), budget=self.budget if budget is None else budget)
