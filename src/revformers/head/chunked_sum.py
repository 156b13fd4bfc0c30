"""The sum of a function over chunks of rows, whose gradients are computed chunk by chunk in the forward pass.

It serves the head of a language model: the logits are the largest tensors of a training step, and a sum of token losses
does not need all of them at once. Checkpointing each chunk would evaluate the head twice. The gradients of the sum are
known up to one factor, the gradient that reaches the sum, so they are computed while the chunk's logits exist, and the
backward pass multiplies them. PyTorch's `linear_cross_entropy` and Liger's fused loss do the same, but only for a
product with a weight matrix; here the function is arbitrary: capped or scaled logits, adapters, the divergence from a
teacher. lab/results/head-memory.json compares PyTorch's with this one: in float32 both need about the same memory, but
in bfloat16 PyTorch's sums the loss in bfloat16, which made it 11% wrong.

Gradients of parameters are summed in at least float32, so that they do not depend on the number of chunks.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from revformers.private_api import has_gradient_hooks, inner_tensors, leaf_of_node

_EVALUATED: ContextVar[int | None] = ContextVar("the most chunks of a sum that are evaluated", default=None)


@contextlib.contextmanager
def few_chunks(most: int) -> Iterator[None]:
    """Evaluate only the first chunks of every sum in the block, whose values are wrong then.

    It serves to plan a step on tensors without values: all chunks are alike, and one exists at a time.
    """
    token = _EVALUATED.set(most)
    try:
        yield
    finally:
        _EVALUATED.reset(token)


def chunked_sum(function: Callable[..., Tensor], rows: Tensor, *others: Tensor, chunk: int) -> Tensor:
    """Return the sum of `function` over chunks of rows, float32 or wider.

    If gradients are enabled, they flow to `rows` and to the parameters that `function` reads, as if it had been
    called once with all rows. There is no second derivative.

    Args:
        function: maps a chunk of every argument, in order, to a scalar. Only its first argument and parameters may
            require gradients.
        rows: (rows, width).
        others: further arguments, (rows, ...), without gradients.
        chunk: number of rows per evaluation.

    Raises:
        ValueError: if a parameter has a gradient hook, which would run for every chunk.

    """
    most = _EVALUATED.get()
    evaluated = [part.detach() if most is None else part.detach()[: most * chunk] for part in (rows, *others)]
    chunks = zip(*(part.split(chunk) for part in evaluated), strict=True)
    if not torch.is_grad_enabled():
        return torch.stack([_whole(function(*arguments)) for arguments in chunks]).sum()
    totals: list[Tensor] = []
    in_place = rows.requires_grad and inner_tensors(rows) is None  # a DTensor, for one, has no views
    of_rows = torch.empty_like(rows, requires_grad=False) if in_place else None
    of_chunks: list[Tensor] = []
    of_parameters: dict[Tensor, Tensor] = {}
    for number, (first, *further) in enumerate(chunks):
        total, gradients = _evaluate(function, first.requires_grad_(rows.requires_grad), further)
        totals.append(total)
        if rows.requires_grad:
            of_chunk = gradients.pop(first) if first in gradients else torch.zeros_like(first, requires_grad=False)
            if of_rows is None:
                of_chunks.append(of_chunk)
            else:
                of_rows[number * chunk :][: len(first)].copy_(of_chunk)
        _add(of_parameters, gradients)
    total = torch.stack(totals).sum()
    inputs, found = [*of_parameters], [*of_parameters.values()]
    if rows.requires_grad:
        inputs, found = [rows, *inputs], [torch.cat(of_chunks) if of_rows is None else of_rows, *found]
    result: Tensor = _WithGradients.apply(total, found, *inputs)
    return result


def _evaluate(
    function: Callable[..., Tensor], first: Tensor, further: list[Tensor]
) -> tuple[Tensor, dict[Tensor, Tensor]]:
    """Return the function's value, and its gradients by leaf."""
    total = function(first, *further)
    leaves = _leaves(total)
    if not leaves:
        return _whole(total), {}
    with _without_autocast(first.device.type):
        gradients = dict(zip(leaves, torch.autograd.grad(total, leaves), strict=True))
    return _whole(total.detach()), gradients


def _whole(total: Tensor) -> Tensor:
    """Return a scalar on every process; it is a DTensor if the logits are sharded, as under `loss_parallel`."""
    return total.full_tensor() if hasattr(total, "full_tensor") else total


def _without_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """Return a context without autocast, for a backward pass; the meta device does not support autocast."""
    if not torch.amp.is_autocast_available(device_type):
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)


def _add(sums: dict[Tensor, Tensor], gradients: dict[Tensor, Tensor]) -> None:
    """Add the gradients of one chunk to the sums, freeing each at once, as they are as large as the parameters."""
    while gradients:
        parameter, gradient = gradients.popitem()
        if parameter not in sums:
            # A copy, because autograd may return the same memory for two parameters, or an expanded scalar.
            sums[parameter] = gradient.to(torch.promote_types(gradient.dtype, torch.float32), copy=True)
        elif inner_tensors(gradient) is None:
            for total, addend in zip(_parts(sums[parameter]), _parts(gradient), strict=True):
                total.add_(addend)
        else:
            sums[parameter] = sums[parameter] + gradient


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return views of a tensor that is no wrapper, to limit memory: operations of a CPU on two dtypes copy an operand.

    Those of a DTensor, for one, would be computed by communication.
    """
    return torch.atleast_1d(tensor).chunk(16)


def _leaves(result: Tensor) -> list[Tensor]:
    """Return the leaves of the graph that ends in `result`; raise ValueError if one has a hook."""
    leaves: list[Tensor] = []
    nodes = [result.grad_fn]
    seen: set[Node] = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = leaf_of_node(node)
        if leaf is not None:
            leaves.append(leaf)
        nodes += [following for following, _ in node.next_functions]
    for leaf in leaves:
        if has_gradient_hooks(leaf):
            raise ValueError(
                f"A parameter {list(leaf.shape)} of the head has a gradient hook (register_hook), which would run for "
                f"every chunk of a chunked loss; remove the hook, or train with the model's own loss."
            )
    return leaves


class _WithGradients(torch.autograd.Function):
    """A scalar whose gradients are known up to a factor, its own gradient in the backward pass."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [tensor.dtype for tensor in inputs]
        return total.clone()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "A chunked loss has no second derivative: backward was called with create_graph=True. Use the model's "
                "own loss, after revformers.set_head_loss(model, None)."
            )
        results = []
        for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True):
            if inner_tensors(gradient) is not None:
                results.append((gradient * factor).to(dtype))
                continue
            results.append(torch.empty_like(gradient, dtype=dtype))
            for part, scaled in zip(_parts(gradient), _parts(results[-1]), strict=True):
                torch.mul(part, factor, out=scaled)
        return (None, None, *results)
