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
        SetupCost(
            setup,
            memory=taken,
            host=host * unit,
            largest_batch=batch,
            host_of_largest_batch=10 * host * unit,
            longest_context=context,
            operations=1.25,
            time=time,
        )
        for setup, host, batch, context, time in (
            (STORE, 0, 4, 1024, 1.0),
            (OVERLAPPED, 7, 1234, 999_936, 1.3),
            (rebuild(2), 0, 12, 4096, 1.456),
        )
    ]
    machine = Machine(DEVICES["h100"], memory)
    return Plan(machine, Choices((2,)), 512, size, rows, 0, None, "Store activations.", longest)
