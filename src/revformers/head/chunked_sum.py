"""The sum of a function over chunks of rows, whose gradients are taken chunk by chunk in the forward pass.

The head of a language model is the reason: its logits are the largest tensors of a training step, and a sum of token
losses does not need them at once. Checkpointing each chunk would do, but evaluates the head twice. The gradient of a
sum is known up to one factor, the gradient of what is made of the sum: so it is taken while the chunk's logits are
there, and the backward pass multiplies. PyTorch's `linear_cross_entropy` and Liger's fused loss do the same for a plain
product with a weight matrix; here the function is free: capped or scaled logits, adapters, the divergence from a
teacher. PyTorch's is measured beside this one in lab/results/head-memory.json and not used: in float32 the two
take about the same memory, but in bfloat16 it sums the loss in bfloat16, which came out 11 % off.

Gradients of parameters are added up in at least float32, so that they do not depend on the number of chunks.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from revformers.private_api import has_gradient_hooks, leaf_of_node


def chunked_sum(function: Callable[..., Tensor], rows: Tensor, *others: Tensor, chunk: int) -> Tensor:
    """Return the sum of `function` over chunks of rows, float32 or wider.

    Where gradients are enabled, they flow to `rows` and to the parameters that `function` reads, as if it had been
    called once with all rows. There is no second derivative.

    Args:
        function: from a chunk of every argument, in order, to a scalar; nothing that needs a gradient may reach it but
            its first argument and parameters.
        rows: (rows, width).
        others: further arguments, (rows, ...), without gradients.
        chunk: rows evaluated at once.

    Raises:
        ValueError: for a parameter with a gradient hook, which would run for every chunk.

    """
    chunks = zip(*(argument.detach().split(chunk) for argument in (rows, *others)), strict=True)
    if not torch.is_grad_enabled():
        return torch.stack([function(*arguments) for arguments in chunks]).sum()
    totals: list[Tensor] = []
    of_rows = torch.empty_like(rows, requires_grad=False) if rows.requires_grad else None
    of_parameters: dict[Tensor, Tensor] = {}
    for number, (first, *further) in enumerate(chunks):
        total, gradients = _evaluate(function, first.requires_grad_(rows.requires_grad), further)
        totals.append(total)
        of_chunk = gradients.pop(first, None)
        if of_rows is not None:
            place = of_rows[number * chunk :][: len(first)]
            place.zero_() if of_chunk is None else place.copy_(of_chunk)
        _add(of_parameters, gradients)
    total = torch.stack(totals).sum()
    inputs, found = [*of_parameters], [*of_parameters.values()]
    if of_rows is not None:
        inputs, found = [rows, *inputs], [of_rows, *found]
    result: Tensor = _WithGradients.apply(total, found, *inputs)
    return result


def _evaluate(
    function: Callable[..., Tensor], first: Tensor, further: list[Tensor]
) -> tuple[Tensor, dict[Tensor, Tensor]]:
    """Return the function's value, and its gradients by the leaf that they belong to."""
    total = function(first, *further)
    leaves = _leaves(total)
    if not leaves:
        return total, {}
    with _without_autocast(first.device.type):
        return total.detach(), dict(zip(leaves, torch.autograd.grad(total, leaves), strict=True))


def _without_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """Return a context for a backward pass, which autocast is not for; the meta device has none."""
    if not torch.amp.is_autocast_available(device_type):
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)


def _add(sums: dict[Tensor, Tensor], gradients: dict[Tensor, Tensor]) -> None:
    """Add the gradients of one chunk to the sums, and let go of each at once: they are as large as the parameters."""
    while gradients:
        parameter, gradient = gradients.popitem()
        if parameter in sums:
            for total, addend in zip(_parts(sums[parameter]), _parts(gradient), strict=True):
                total.add_(addend)
        else:
            # A copy, as autograd may hand the same memory to two parameters, or one number to all elements of one.
            sums[parameter] = gradient.to(torch.promote_types(gradient.dtype, torch.float32), copy=True)


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return views of a tensor: an operation on two dtypes makes a copy of what it is given on the CPU."""
    return torch.atleast_1d(tensor).chunk(16)


def _leaves(result: Tensor) -> list[Tensor]:
    """Return the leaves of the graph that ends in `result`; refuse those with hooks."""
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
                f"A parameter {list(leaf.shape)} of the head has a gradient hook (register_hook), which a chunked loss "
                f"would run for every chunk; remove the hook, or train with the model's own loss."
            )
    return leaves


class _WithGradients(torch.autograd.Function):
    """A number with gradients that are known up to the factor that reaches it in the backward pass."""

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
            results.append(torch.empty_like(gradient, dtype=dtype))
            for part, scaled in zip(_parts(gradient), _parts(results[-1]), strict=True):
                torch.mul(part, factor, out=scaled)
        return (None, None, *results)
