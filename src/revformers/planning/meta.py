"""Runs a training step on PyTorch's meta device, where tensors have shapes but no values.

The model of transformers, the engine of this library and autograd all run as usual. Only the kernels are left out, so
a step of any size needs no memory and little time.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from revformers.head.chunked_sum import few_chunks
from revformers.planning.results import RememberedResults
from revformers.private_api import COPY_TO, CPU_ATTENTION, READ_NUMBER, TorchDispatchMode

aten = torch.ops.aten
_RESULTS = RememberedResults()


@contextlib.contextmanager
def without_numbers(chunks: int) -> Iterator[None]:
    """Run a step on meta tensors although it reads values, with attention computed by the fused kernel.

    The fused kernel, whose memory is linear in the tokens, is also the one that runs on real devices. This is a
    dispatch mode because a function mode would miss the layers that checkpointing recomputes in the backward pass.

    Args:
        chunks: the most chunks of a chunked loss that are evaluated.

    """
    function = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = partial(_attention, function)
    try:
        with _Answers(), autocast_without_meta(), few_chunks(chunks):
            yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = function


@contextlib.contextmanager
def autocast_without_meta() -> Iterator[None]:
    """Accept autocast for the meta device, which PEFT requests for adapters on experts and PyTorch refuses."""
    autocast = torch.autocast

    def of_device(device_type: str, *arguments: Any, **keywords: Any) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if device_type == "meta" else autocast(device_type, *arguments, **keywords)

    torch.autocast = of_device  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        torch.autocast = autocast  # type: ignore[misc]


class _Answers(TorchDispatchMode):
    """Answers the questions of a step about values that meta tensors do not have."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is aten.equal.default:  # the check of a rebuilt state
            return True
        if func is READ_NUMBER:
            # transformers asks whether no token is masked and whether no row holds two documents. Answering no would
            # add attention masks that a step on whole sequences does not need.
            return 0.0 if args[0].is_floating_point() else args[0].dtype is torch.bool
        if func is COPY_TO and args[0].is_meta and str(kwargs.get("device")) == "cpu":
            # The host reads the magnitudes for the range check.
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if func is aten.nonzero.default:  # the tokens that count in the loss
            return torch.arange(args[0].numel(), device=args[0].device)[:, None]
        return _RESULTS.run(func, args, kwargs)


def _attention(
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Replace `scaled_dot_product_attention`; like the fused kernels, do not repeat heads that share keys."""
    if not query.is_meta or dropout_p or query.shape[-1] != value.shape[-1]:  # PyTorch has no fused kernel for these
        return func(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if not key.shape[-3] or query.shape[-3] % key.shape[-3]:
        raise ValueError(f"{query.shape[-3]} heads of queries cannot share {key.shape[-3]} heads of keys")
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    return CPU_ATTENTION(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]
