"""Counts the operations and bytes of a training step, and predicts its time on a device whose speeds are known.

The roofline model of Williams, Waterman and Patterson (Communications of the ACM 52(4), 2009): the time of an operator
is that of its floating-point operations at the device's peak or that of its bytes at the memory's bandwidth, whichever
is longer; operators run one after the other. Kernels that reach neither limit, launches and compilers are left out, so
the model compares ways to train but does not predict seconds.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from revformers.engine.ops import KERNELS
from revformers.planning.kernels import Described, described, fused_bytes
from revformers.planning.results import makes_new_tensors, tensors_in
from revformers.private_api import (
    CPU_ATTENTION,
    CPU_ATTENTION_BACKWARD,
    TorchDispatchMode,
    current_backward_pass,
    flop_registry,
    schema_of,
    sdpa_backward_flop_count,
    sdpa_flop_count,
    storage_number,
)

aten = torch.ops.aten


Operators = Counter[tuple[int, int]]
"""How often each pair of (floating-point operations, bytes read and written) occurs."""


@dataclass(frozen=True)
class PassWork:
    """The operators of a forward or a backward pass.

    Only matrix products and attention have operations; all other operators are assumed to be bound by memory.

    Attributes:
        operators: those of PyTorch.
        kernels: how often each operator of the engine occurs with its arguments.

    """

    operators: Operators = field(default_factory=Counter)
    kernels: Counter[tuple[Any, Described]] = field(default_factory=Counter)

    @property
    def operations(self) -> int:
        """Total number of floating-point operations."""
        return sum(number * operations for (operations, _), number in self.operators.items())

    def time(self, operations_per_byte: float) -> float:
        """Return the time of the pass, in units of one floating-point operation at the device's peak.

        An operator of the engine is one kernel, as on CUDA, which is bound by memory.

        Args:
            operations_per_byte: operations that the device performs in the time that it moves one byte.

        """
        operators = sum(
            number * max(operations, bytes_moved * operations_per_byte)
            for (operations, bytes_moved), number in self.operators.items()
        )
        kernels = sum(number * fused_bytes(*kernel) for kernel, number in self.kernels.items())
        return operators + kernels * operations_per_byte


@dataclass(frozen=True)
class Work:
    """The operators of a step."""

    forward: PassWork = field(default_factory=PassWork)
    backward: PassWork = field(default_factory=PassWork)

    @property
    def operations(self) -> int:
        """Total number of floating-point operations."""
        return self.forward.operations + self.backward.operations


def work_of(step: Callable[[], object]) -> Work:
    """Run `step` and return its operators."""
    with WorkCounter() as counter:
        step()
    return counter.work


class WorkCounter(TorchDispatchMode):
    """Counts the operators that run while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.work = Work()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        work = self.work.forward if current_backward_pass() is None else self.work.backward
        if func in KERNELS:
            work.kernels[func, described(args)] += 1
            return result
        if func is aten.empty_strided.default:  # allocates a tensor and writes nothing
            return result
        if not makes_new_tensors(func) and not schema_of(func).is_mutable and _is_view(result, (args, kwargs)):
            return result
        count = _OPERATIONS.get(func.overloadpacket)
        operations = int(count(*args, **kwargs, out_val=result)) if count else 0
        work.operators[operations, sum(map(_bytes, tensors_in((args, kwargs, result))))] += 1
        return result


def _is_view(result: Any, arguments: Any) -> bool:
    """Say whether all results of an operator lie in the memory of its arguments."""
    storages = {storage_number(tensor.untyped_storage()) for tensor in tensors_in(arguments)}
    return all(storage_number(tensor.untyped_storage()) in storages for tensor in tensors_in(result))


def _bytes(tensor: Tensor) -> int:
    """Return the bytes of the tensor's elements; those of an expanded tensor count once."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


def _attention_operations(query: Tensor, key: Tensor, value: Tensor, *others: Any, **keywords: Any) -> int:
    whole = sdpa_flop_count(query.shape, _repeated(key, query), _repeated(value, query))
    return _of_mask(whole, CPU_ATTENTION, query, key, value, *others, **keywords)


def _attention_backward_operations(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *others: Any, **keywords: Any
) -> int:
    whole = sdpa_backward_flop_count(gradient.shape, query.shape, _repeated(key, query), _repeated(value, query))
    return _of_mask(whole, CPU_ATTENTION_BACKWARD, gradient, query, key, value, *others, **keywords)


def _of_mask(whole: int, attention: Any, *arguments: Any, **keywords: Any) -> int:
    """Return the operations of attention that is causal or not; fused kernels skip the half that a token cannot see."""
    place = [argument.name for argument in schema_of(attention.default).arguments].index("is_causal")
    causal = arguments[place] if len(arguments) > place else keywords.get("is_causal", False)
    return whole // 2 if causal else whole


def _repeated(tensor: Tensor, query: Tensor) -> torch.Size:
    """Return the shape of keys or values with as many heads as the queries have."""
    return torch.Size((*tensor.shape[:-3], query.shape[-3], *tensor.shape[-2:]))


_OPERATIONS: dict[Any, Callable[..., int]] = flop_registry | {
    CPU_ATTENTION: _attention_operations,
    CPU_ATTENTION_BACKWARD: _attention_backward_operations,
}
