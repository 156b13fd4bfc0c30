"""Saved tensors in which there may be numbers that no kernel wrote.

The fused attention kernels of GPUs save a log-sum-exp whose rows are padded, and the state of a random generator that
they did not use. What lies there is whatever the memory held before, and is another each time. Neither is needed for
the comparison: the output of the kernel, which is saved beside them, follows from the same inputs.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from revformers.activations.ticket import SavedTensor

_NODES = "ScaledDotProduct"
_PARTS = ("logsumexp", "log_sumexp", "philox_seed", "philox_offset", "rng_state", "unused")


def unwritten_tickets(update: Tensor, hidden: Tensor) -> Iterator[SavedTensor]:
    """Yield the tickets of such tensors in the graph from `hidden` to `update`."""
    seen: set[Any] = {None, hidden.grad_fn}
    nodes: list[Any] = [update.grad_fn]
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        nodes += [source for source, _ in node.next_functions]
        if node.name().startswith(_NODES):
            saved = (getattr(node, f"_raw_saved_{part}", None) for part in _PARTS)
            yield from (one.data for one in saved if one is not None and isinstance(one.data, SavedTensor))
