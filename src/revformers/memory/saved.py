"""Peak memory and operations of a training step that is run without numbers, on PyTorch's meta device.

The step is the real one: the model of transformers, the engine of this library, autograd. Only the kernels are left
out, so a step of any size takes no memory, and every storage that would be allocated is counted while it is alive.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten


def peak_bytes(step: Callable[[], object], alive: list[Tensor]) -> int:
    """Run `step` on meta tensors and return the most bytes that its tensors would have held at once.

    Args:
        step: a forward and backward pass.
        alive: tensors that exist before and after, such as parameters; they are not counted.

    """
    with _fused_attention(), _LiveBytes(alive) as live:
        step()
    return live.peak


def floating_point_operations(step: Callable[[], object], alive: list[Tensor]) -> int:
    """Run `step` on meta tensors and return the operations of its matrix products and its attention."""
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: _attention_operations,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_operations,
        },
    )
    with _fused_attention(), _LiveBytes(alive), counter:
        step()
    return int(counter.get_total_flops())


class _LiveBytes(TorchDispatchMode):
    """Counts the storages that are alive, each once, and answers what a step asks about numbers that do not exist."""

    def __init__(self, alive: list[Tensor]) -> None:
        super().__init__()
        self.held = 0
        self.peak = 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in alive}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is aten.equal.default:  # the check of a rebuilt state
            return True
        if func is aten._local_scalar_dense.default:
            return 0.0 if args[0].is_floating_point() else 0
        if func is aten._to_copy.default and args[0].is_meta and str(kwargs.get("device")) == "cpu":
            # the host reads the magnitudes of the range check
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if func is aten.nonzero.default:  # every token counts in the loss
            result = torch.arange(args[0].numel(), device=args[0].device)[:, None]
        else:
            result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.held += self._sizes[key]
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.held -= self._sizes.pop(key)


@contextlib.contextmanager
def _fused_attention() -> Iterator[None]:
    """Run attention by the fused kernel, whose memory is linear in the tokens, as it runs on devices with numbers.

    A function mode would not reach what checkpointing evaluates again in the backward pass.
    """
    function = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = partial(_attention, function)
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = function


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
    if not query.is_meta or dropout_p or query.shape[-1] != value.shape[-1]:  # PyTorch has no fused kernel for these
        return func(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    return aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale
    )[0]


def _attention_operations(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_operations(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)
