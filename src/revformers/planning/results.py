"""Caches the results of operators on the meta device, where a result is only its shape, strides and dtype.

PyTorch computes most of these in Python, which needs up to a millisecond per operator, and the layers of a network
request the same ones repeatedly.
"""

from collections.abc import Hashable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from revformers.private_api import UNSAFE_VIEW, schema_of, tree_leaves

MOST = 100_000
"""Number of results in the cache; a full cache is emptied."""

Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]
"""Shape, strides and dtype of a tensor."""


class RememberedResults:
    """Runs operators on meta tensors, once for arguments of the same layouts."""

    def __init__(self) -> None:
        self._new: dict[Hashable, list[Layout]] = {}
        self._written: set[Hashable] = set()

    def run(self, operator: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Return the result of `operator`, from the cache if possible."""
        makes_new, target = makes_new_tensors(operator), _writes_to(operator)
        if not makes_new and target is None:
            return operator(*arguments, **keywords)
        try:
            key = (operator, _key(arguments), _key(tuple(keywords.items())))
            layouts = self._new.get(key)
        except TypeError:  # an argument that cannot be hashed
            return operator(*arguments, **keywords)
        if layouts is not None:
            results = tuple(map(tensor_of, layouts))
            return results if len(schema_of(operator).returns) > 1 else results[0]
        if key in self._written:
            return keywords["out"] if target == "out" else arguments[0]
        result = operator(*arguments, **keywords)
        self._remember(key, result, makes_new)
        return result

    def _remember(self, key: Hashable, result: Any, new: bool) -> None:
        if len(self._new) + len(self._written) >= MOST:
            self._new.clear()
            self._written.clear()
        results = [result] if isinstance(result, Tensor) else list(result)
        if not new and result.is_meta:
            self._written.add(key)
        elif new and all(_is_plain(tensor) for tensor in results):
            self._new[key] = list(map(layout_of, results))


@cache
def makes_new_tensors(operator: Any) -> bool:
    """Say whether all results of an operator are tensors with storages of their own."""
    schema = schema_of(operator)
    return (
        operator is not UNSAFE_VIEW
        and len(schema.returns) > 0
        and all(str(value.type) == "Tensor" and value.alias_info is None for value in schema.returns)
        and not schema.is_mutable
    )


@cache
def _writes_to(operator: Any) -> str | None:
    """Return the argument that an elementwise operator overwrites and returns, "self" or "out", or None."""
    if torch.Tag.pointwise not in operator.tags or len(schema_of(operator).returns) != 1:
        return None
    written = [value.name for value in schema_of(operator).arguments if value.alias_info and value.alias_info.is_write]
    return written[0] if written in (["self"], ["out"]) else None


def _key(value: Any) -> Hashable:
    """Return the properties of an argument that determine the layout of a result."""
    kind = type(value)
    if kind is Tensor or kind is torch.nn.Parameter:
        return value.shape, value.stride(), value.dtype, value.device
    if kind is tuple or kind is list:
        return kind, *map(_key, value)
    if isinstance(value, Tensor):
        raise TypeError(f"{kind} is not a plain tensor")
    # 2, 2.0 and True are equal but lead to results of different dtypes.
    return kind, value


def _is_plain(tensor: Any) -> bool:
    """Say whether `tensor_of` can reproduce a tensor from its layout."""
    if type(tensor) is not Tensor or not tensor.is_meta or tensor.storage_offset():
        return False
    like = tensor_of(layout_of(tensor))
    return like.untyped_storage().nbytes() == tensor.untyped_storage().nbytes()


def tensors_in(values: Any) -> list[Tensor]:
    """Return the tensors among the arguments or the results of an operator."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def layout_of(tensor: Tensor) -> Layout:
    """Return the layout of a tensor."""
    return tensor.shape, tensor.stride(), tensor.dtype


def tensor_of(layout: Layout) -> Tensor:
    """Return a new meta tensor of this layout."""
    shape, strides, dtype = layout
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
