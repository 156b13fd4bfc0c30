"""A plan with figures that were made up."""

from revformers.planning.cost import SetupCost
from revformers.planning.devices import DEVICES, Machine
from revformers.planning.model_size import ModelSize
from revformers.planning.plan import Plan
from revformers.planning.setups import OVERLAPPED, Choices, rebuild
from revformers.planning.timeline import MemoryByCategory
from revformers.setup import STORE

MIB = 2**20


def example_plan(memory=64 * MIB, unit=MIB, longest=None):
    size = ModelSize(
        parameters=5_000_000, trained=4_000_000, weights=20 * unit, gradients=8 * unit, optimizer=16 * unit
    )
    taken = MemoryByCategory(
        weights=20 * unit, activations=3 * unit, side_information=unit, working=unit // 2, other=unit
    )
    rows = [
        SetupCost(STORE, taken, 0, 4, 0, 1024, 1.0, 1.0),
        SetupCost(OVERLAPPED, taken, 7 * unit, 1234, 70 * unit, 999_936, 1.25, 1.3),
        SetupCost(rebuild(2), taken, 0, 12, 0, 4096, 1.3, 1.456),
    ]
    machine = Machine(DEVICES["h100"], memory)
    return Plan(machine, Choices((2,)), 512, size, rows, None, "Store activations.", longest)
