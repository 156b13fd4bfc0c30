"""Rows of plans with figures that were made up."""

from revformers.planning.cost import SetupCost
from revformers.planning.setups import OVERLAPPED, budgeted, rebuild
from revformers.planning.timeline import MemoryByCategory
from revformers.setup import CHECKPOINT, OFFLOAD, STORE

GIB = 2**30

SETUPS = {
    "store": STORE,
    "checkpoint": CHECKPOINT,
    "serial offload": OFFLOAD,
    "offload": OVERLAPPED,
    "budget": budgeted(GIB),
}


def row(name, batch, context=0, time=1.0, bits=None, limited=False, **memory):
    host = GIB * name.endswith("offload")
    return SetupCost(
        SETUPS.get(name) or rebuild(bits),
        memory=MemoryByCategory(**memory),
        host=host,
        largest_batch=batch,
        host_of_largest_batch=3 * host * bool(batch),
        longest_context=None if name == "budget" else context or 1024 * batch,
        operations=time,
        time=time,
        limited_by_host=limited,
    )
