"""Arms, the ways to train that are compared, as recipes name them, such as `rebuild:2` and `budget:20GiB`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lab.bench.rivals import Rival
from lab.bench.workload import MeasuredWorkload
from revformers.activations import ACTIVATIONS, Budget, Checkpoint
from revformers.activations.budget.budget import Recompute
from revformers.activations.budget.budgeted import smallest_budget
from revformers.byte_size import parse_size
from revformers.dynamics import BlendedMidpoint, Dynamics, Midpoint
from revformers.engine.state_format import parse_states
from revformers.setup import CHECKPOINT, OFFLOAD, STORE, Setup

# Recipes and committed results call the ordinary network plain.
ORDINARY = "plain_"
ORDINARY_STORE = f"{ORDINARY}store"
ORDINARY_CHECKPOINT = f"{ORDINARY}checkpoint"
ORDINARY_OFFLOAD = f"{ORDINARY}offload"
ORDINARY_SELECTIVE = f"{ORDINARY}selective"
ORDINARY_EVERY = f"{ORDINARY}every"
ORDINARY_ARMS = {
    ORDINARY_STORE: STORE,
    ORDINARY_CHECKPOINT: CHECKPOINT,
    ORDINARY_OFFLOAD: OFFLOAD,
    ORDINARY_SELECTIVE: Rival(None, Checkpoint(), keeps_attention=True),
}
BUDGETS: dict[str, Recompute] = {"budget": "rebuild", "budget_checkpoint": "checkpoint"}
ARM_NAMES = (*ORDINARY_ARMS, ORDINARY_EVERY, "store", "checkpoint", "offload", "rebuild", *BUDGETS)

REBUILD_OPTIONS = re.compile("([0-8])(?::(int32|int64))?")


@dataclass(frozen=True)
class ArmName:
    """The name of an arm, split into its parts.

    Attributes:
        text: the whole name as the recipe gives it.
        name: the part before the colon.
        bits: side information of ``rebuild:2``, in bits per element and layer: the blended midpoint rule of 1/2^bits,
            or the midpoint rule at 0. None: the recipe's own dynamics.
        budget: bytes of ``budget:20GiB`` and ``budget_checkpoint:20GiB``. None: the study sets the budget.
        states: format of the states of ``rebuild:2:int32``; otherwise auto.
        every: n of ``plain_every:n``, which checkpoints every n-th layer of the ordinary network.

    """

    text: str
    name: str
    bits: int | None = None
    budget: int | None = None
    states: str = "auto"
    every: int | None = None

    @classmethod
    def parse(cls, text: str) -> "ArmName":
        """Parse one name; raise ValueError if it names no arm."""
        name, colon, option = text.partition(":")
        if name not in ARM_NAMES:
            raise ValueError(f"There is no arm {text!r}; choose among {', '.join(ARM_NAMES)}.")
        if not colon and name != ORDINARY_EVERY:
            return cls(text, name)
        if name == ORDINARY_EVERY and option.isdecimal() and int(option) > 1:
            return cls(text, name, every=int(option))
        if name == "rebuild" and (parts := REBUILD_OPTIONS.fullmatch(option)):
            return cls(text, name, bits=int(parts[1]), states=parts[2] or "auto")
        if name in BUDGETS:
            return cls(text, name, budget=parse_size(option))
        raise ValueError(
            f"The arm {text!r} cannot be read: rebuild takes bits of side information from 0 to 8, as in rebuild:2, "
            f"and then a format of states, as in rebuild:2:int64; budget and budget_checkpoint take a size, as in "
            f"budget:20GiB; {ORDINARY_EVERY} takes a number from 2, as in {ORDINARY_EVERY}:2; other arms take nothing."
        )

    @property
    def open(self) -> bool:
        """Whether the study has to set the size of the budget."""
        return self.name in BUDGETS and self.budget is None

    def dynamics(self, own: Dynamics) -> Dynamics:
        """Return the dynamics of this arm; `own` are those of the recipe."""
        if self.bits is None:
            return own
        return BlendedMidpoint(f"1/{2**self.bits}") if self.bits else Midpoint()

    def setup(self, own: Dynamics, budget: int | None = None) -> Setup:
        """Return the setup of the arm; `own` are the recipe's dynamics, `budget` the bytes of an open budget.

        Raises:
            ValueError: if the arm needs an inverse that the dynamics lack, or if an open arm gets no budget.

        """
        if self.name in ORDINARY_ARMS:
            return ORDINARY_ARMS[self.name]
        if self.every is not None:
            return Rival(None, Checkpoint(), every=self.every)
        if self.name not in BUDGETS:
            return Setup(self.dynamics(own), ACTIVATIONS[self.name](), parse_states(self.states))
        size = self.budget if budget is None else budget
        if size is None:
            raise ValueError(f"The arm {self.name!r} needs a budget in bytes.")
        return Setup(self.dynamics(own), Budget(size, BUDGETS[self.name]))


def setups_of(names: Sequence[str], dynamics: Dynamics, budget: int | None = None) -> dict[str, Setup]:
    """Return the arms called `names`, by name; arms without dynamics or budget of their own use those given here."""
    return {name: ArmName.parse(name).setup(dynamics, budget) for name in names}


def arm_name(setup: Setup) -> str:
    """Return the name of an arm without the part after the colon."""
    if setup.ordinary:
        return next((name for name, other in ORDINARY_ARMS.items() if other == setup), ORDINARY_EVERY)
    budgets = {recompute: name for name, recompute in BUDGETS.items()}
    return budgets[setup.activations.recompute] if isinstance(setup.activations, Budget) else setup.activations.name


def budget_of(setup: Setup) -> int | None:
    """Return the budget of an arm in bytes, or None."""
    if not isinstance(setup.activations, Budget):
        return None
    size = setup.activations.size
    return parse_size(size) if isinstance(size, str) else int(size)


def smallest_budget_of(setup: Setup, workload: MeasuredWorkload) -> int:
    """Return the least number of bytes that a pass of a budget arm keeps."""
    assert setup.dynamics is not None
    assert isinstance(setup.activations, Budget)
    with workload.autocast():
        states = setup.states.of_pass(workload.dtype, torch.device(workload.device))
    return smallest_budget(
        workload.layer_input_elements,
        workload.dtype.itemsize,
        states.dtype.itemsize,
        setup.dynamics.steps(workload.layers),
        may_rebuild=setup.activations.recompute == "rebuild",
    )
