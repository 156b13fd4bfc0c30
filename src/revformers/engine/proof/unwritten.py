"""Saved tensors that may contain uninitialised memory.

A fused attention kernel of GPUs saves a log-sum-exp whose rows are padded, and without dropout the state of a random
generator that it did not use. The unwritten parts contain arbitrary values, which differ in every evaluation.
"""

from typing import Any

import torch
from torch import Tensor

from revformers.engine.ticket import Packed, SavedTensor, packed_by
from revformers.private_api import ATTENTION_NODES, LOG_SUM_EXPS, RANDOM_STATES, attention_dropout

WRITE_EVERYTHING = {"cpu", "meta"}
"""Devices whose kernels write all elements of every saved tensor."""

_RANDOM_NUMBERS = 4


def may_be_unwritten(tensor: Tensor) -> bool:
    """Whether a saved tensor may be a log-sum-exp, (batch, heads, tokens), or the state of a random generator.

    Neither has a node in the graph.
    """
    if tensor.device.type in WRITE_EVERYTHING or tensor.grad_fn is not None:
        return False
    return (tensor.dim() == 3 and tensor.dtype == torch.float32) or tensor.numel() <= _RANDOM_NUMBERS


def written_parts(update: Tensor, hidden: Tensor, evaluation: object) -> dict[int, int]:
    """Return the number of written elements in the last dimension of such tensors, by number among the saved tensors.

    Args:
        update: the output of the field.
        hidden: its input, where the search ends.
        evaluation: the identity of the evaluation in its `Packed` objects; tensors of other evaluations are skipped.

    """
    if hidden.device.type in WRITE_EVERYTHING:
        return {}
    found: dict[int, int] = {}
    seen: set[Any] = {None, hidden.grad_fn}
    nodes: list[Any] = [update.grad_fn]
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        nodes += [source for source, _ in node.next_functions]
        if not node.name().startswith(ATTENTION_NODES):
            continue

        def saved(name: str, node: Any = node) -> Packed | None:
            packed = packed_by(node, name)
            return packed if packed is not None and packed.evaluation is evaluation else None

        query = saved("query")
        for name in LOG_SUM_EXPS:
            ticket = saved(name)
            if isinstance(ticket, SavedTensor) and isinstance(query, SavedTensor) and len(ticket.shape) == 3:
                found[ticket.number] = query.shape[-2]
        for name in RANDOM_STATES:
            ticket = saved(name)
            if ticket is not None and not attention_dropout(node):
                found[ticket.number] = 0
    return found
