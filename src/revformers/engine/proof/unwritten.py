"""Saved tensors that may contain uninitialised memory.

A fused attention kernel of GPUs saves a log-sum-exp whose rows are padded, and without dropout the state of a random
generator that it did not use. The unwritten parts contain arbitrary values, which differ in every evaluation.

Compiled code is one node for many kernels, and does not name what they save. There a log-sum-exp is known by its shape:
(batch, heads, tokens), the tokens padded to a multiple of 32, where queries or results of the same batch, heads and
tokens are saved too, and batch and tokens are those of the layer's input. Whatever has another shape is compared, also
where tokens and heads are as many, so that one cannot be told from the other. The state of a generator has one of two
forms. It is not compared there with dropout either: another state gives other results, which are saved and compared.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from revformers.engine.ticket import Packed, SavedTensor, packed_by
from revformers.private_api import (
    ATTENTION_NODES,
    COMPILED_NODES,
    LOG_SUM_EXPS,
    RANDOM_STATES,
    attention_dropout,
    held_by_function,
)

WRITE_EVERYTHING = {"cpu", "meta"}
"""Devices whose kernels write all elements of every saved tensor."""

_RANDOM_NUMBERS = 4
_PADDED_TO = 32
"""Tokens to whose multiples kernels pad the rows of their log-sum-exp."""


def may_be_unwritten(tensor: Tensor, device: torch.device) -> bool:
    """Whether a tensor that a field on `device` saves may be a log-sum-exp or the state of a random generator.

    A log-sum-exp has the shape (batch, heads, tokens). Neither has a node in the graph. Some kernels of GPUs save the
    state on the CPU, so that the device of the field counts, not that of the tensor.
    """
    if device.type in WRITE_EVERYTHING or tensor.grad_fn is not None:
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
        if node.name().startswith(COMPILED_NODES):
            tickets = [held for held in held_by_function(node) if isinstance(held, SavedTensor)]
            found |= _written_by_compiled(
                [ticket for ticket in tickets if ticket.evaluation is evaluation], hidden.shape
            )
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


def _written_by_compiled(saved: Sequence[SavedTensor], hidden: torch.Size) -> dict[int, int]:
    """Return the same as `written_parts`, of what one node of compiled code saved in a field of `hidden`'s shape."""
    if len(hidden) != 3:
        return {}
    batch, tokens, _ = hidden
    padded = {tokens, -(-tokens // _PADDED_TO) * _PADDED_TO}
    # Of queries or results. Where heads and tokens are as many, one could be taken for the other.
    of_heads = [ticket.shape for ticket in saved if len(ticket.shape) == 4 and ticket.shape[-1] > 1]
    rows = {shape[:2] for shape in of_heads if shape[0] == batch and shape[2] == tokens and shape[1] != tokens}
    found: dict[int, int] = {}
    kernels = 0
    for ticket in saved:
        if ticket.dtype != torch.float32 or ticket.shape[:2] not in rows:
            continue
        if len(ticket.shape) == 3 and ticket.shape[2] in padded:
            found[ticket.number] = tokens
            kernels += 1
        elif ticket.shape[2:] == (tokens, 1):
            kernels += 1  # cuDNN's log-sum-exp, which is not padded
    of_flash = [ticket for ticket in saved if ticket.dtype == torch.uint64 and ticket.shape.numel() <= 2]
    of_others = [ticket for ticket in saved if ticket.dtype == torch.int64 and not ticket.shape]
    found |= dict.fromkeys((ticket.number for ticket in of_flash), 0)
    # A seed and an offset each. If there are more such numbers, some are something else, and all are compared.
    if len(of_others) <= 2 * (kernels - sum(ticket.shape == (2,) for ticket in of_flash)):
        found |= dict.fromkeys((ticket.number for ticket in of_others), 0)
    return found
