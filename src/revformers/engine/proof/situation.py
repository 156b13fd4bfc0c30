"""A record of the modules of a layer, so that an error can name what changed between the passes.

A change alone is not an error: one that does not affect the gradient, such as `eval()` without dropout, is harmless. If
saved tensors differ, the record names the cause. It also finds weights that changed before the backward pass steps any,
and the tensors that a layer writes to when it is evaluated.
"""

import copy
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from revformers.engine.field import Field, modules_of
from revformers.engine.tensors import is_plain
from revformers.private_api import (
    ADAPTERS_ACTIVE,
    ADAPTERS_MERGED,
    ADAPTERS_OFF,
    COUNTED_BY_ENGINES,
    attention_of,
    buffers_of,
    children_of,
    forward_hooks,
    forward_pre_hooks,
    has_accumulation_hooks,
    is_partitioned,
    parameters_of,
    version_of,
)

_FUNCTIONS = (FunctionType, MethodType, BuiltinFunctionType, partial)
_NUMBERS = (int, float)
_PLAIN = (bool, *_NUMBERS, str, type(None))
_LONGEST_LOOKED_AT = 2**10
"""Length of a list or dictionary above which the numbers in it are not looked at, such as a table of ids."""

_OF_MANY_MODULES: dict[str, Callable[[Any, Any], str]] = {
    "training": lambda before, after: f"modules were switched to {'train' if after else 'eval'}()",
    ADAPTERS_OFF: lambda before, after: f"adapters were {'disabled' if after else 'enabled'}",
    ADAPTERS_MERGED: lambda before, after: f"adapters were {'merged' if after else 'unmerged'}",
    ADAPTERS_ACTIVE: lambda before, after: f"the active adapter was changed from {before} to {after}",
}
"""Settings that change in many modules at once, with the words for a change. All but the first are PEFT's."""


class _Hook(str):
    """The name of a hook."""


class Situation:
    """A record of a field's modules at one moment: their parameters, buffers and settings.

    Args:
        field: the field.
        settings: whether to record settings, which is the slowest part.

    """

    def __init__(self, field: Field, *, settings: bool = True) -> None:
        self._roots = list(modules_of(field))
        self._modules = [_ModuleState(module, settings=settings) for root in self._roots for module in root.modules()]
        self._owned = {id(tensor): weakref.ref(tensor) for state in self._modules for tensor in state.tensors()}

    def now(self) -> "Situation":
        """Return a new record of the same modules, with their settings."""
        result = copy.copy(self)
        result._modules = [state.now() for state in self._modules]  # noqa: SLF001 - our own
        return result

    def owns(self, tensor: Tensor) -> bool:
        """Whether a tensor was a parameter or a buffer of a module."""
        held = self._owned.get(id(tensor))
        return held is not None and held() is tensor

    def tensor_changes(self) -> list[str]:
        """Return the changes of parameters and buffers in words, e.g. "mlp.up_proj.weight [48, 32] was frozen"."""
        return [change for state in self._modules for change in state.tensor_changes(self.path(state.module))]

    def setting_changes(self) -> list[str]:
        """Return the changes of settings, modules and hooks in words; a change of many modules is named first, once."""
        changes = [
            change
            for state in self._modules
            for path in [self.path(state.module)]
            for change in (*state.setting_changes(path), *state.attribute_changes(path))
        ]
        return [words for _, words in sorted(dict.fromkeys(changes), key=lambda change: change[0])]

    def written_buffer(self) -> str | None:
        """Return the name of a buffer that was written to, as a second evaluation would do again; None if none was."""
        for state in self._modules:
            for name in state.written_buffers():
                return f"{self.path(state.module)}{name}"
        return None

    def reassigned_tensors(self) -> Iterator[tuple[nn.Module, str]]:
        """Yield the modules and names of tensors among the attributes that were assigned since this was made."""
        return ((state.module, name) for state in self._modules for name in state.reassigned_tensors())

    def reassigned_numbers(self) -> Iterator[tuple[nn.Module, str]]:
        """Yield the modules and names of attributes whose numbers have changed since this was made."""
        return ((state.module, name) for state in self._modules for name in state.reassigned_numbers())

    def tensors_besides_weights(self) -> Iterator[tuple[nn.Module, str, Tensor, bool]]:
        """Yield buffers, frozen parameters, tensors among the attributes, and weights that were written to.

        Each item is the module, the name in the module, the tensor, and whether it was written to since this was made.
        """
        for state in self._modules:
            for name, tensor, is_written in state.tensors_besides_weights():
                yield state.module, name, tensor, is_written

    def own_writes(self) -> list[str]:
        """Return the names of tensors and numbers that the layer itself changed before `now` was called."""
        return [f"{self.path(state.module)}{name}" for state in self._modules for name in state.own_writes]

    def path(self, module: nn.Module) -> str:
        """Return the prefix of the names in a module, e.g. "mlp."; empty for the layer itself."""
        paths = (path for root in self._roots for path, part in root.named_modules() if part is module)
        path = next(paths, "")
        return path and f"{path}."

    def trains_in_backward(self) -> bool:
        """Whether a hook may step a parameter as soon as its gradient is accumulated."""
        return any(
            parameter is not None and has_accumulation_hooks(parameter)
            for state in self._modules
            for parameter in parameters_of(state.module).values()
        )


class _TensorState(NamedTuple):
    """The recorded state of a parameter or a buffer."""

    reference: "weakref.ref[Tensor]"
    trains: bool
    version: int
    address: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class _ModuleState:
    """The recorded state of one module; it is fast to create, because most records are never compared."""

    __slots__ = ("_attributes", "_numbers", "_settings", "_tensors", "module", "own_writes")

    def __init__(self, module: nn.Module, *, settings: bool) -> None:
        self.module = module
        self.own_writes: list[str] = []
        self._settings = _settings(module) if settings else {}
        self._tensors = {
            name: _TensorState(
                weakref.ref(tensor),
                tensor.requires_grad,
                version_of(tensor),
                _address(tensor),
                _shape(tensor),
                tensor.dtype,
            )
            for own in (parameters_of(module), buffers_of(module))
            for name, tensor in own.items()
            if tensor is not None and not is_lazy(tensor)
        }
        self._attributes = {name: (weakref.ref(value), version_of(value)) for name, value in tensor_attributes(module)}
        self._numbers = _numbers_of(module)

    def now(self) -> "_ModuleState":
        """Return a new record of the same module; changes since this one are attributed to the layer itself."""
        result = _ModuleState(self.module, settings=True)
        result.own_writes = [
            name
            for name, state in self._tensors.items()
            if name in result._tensors and result._tensors[name].version != state.version
        ]
        result.own_writes += [
            name
            for name, state in result._attributes.items()
            if name in self._attributes and not self._has(name, state)
        ]
        result.own_writes += _differing(self._numbers, result._numbers)
        # Attributes that the layer changed are dropped, because the next evaluation changes them again.
        result._attributes = {name: state for name, state in result._attributes.items() if self._has(name, state)}
        return result

    def _has(self, name: str, state: "tuple[weakref.ref[Tensor], int]") -> bool:
        """Whether an attribute was the same tensor, with the same content, when this was made."""
        before = self._attributes.get(name)
        return before is not None and before[0]() is state[0]() and before[1] == state[1]

    def attribute_changes(self, path: str) -> Iterator[tuple[bool, str]]:
        """Yield the changes of tensors among the attributes, in the form of `setting_changes`."""
        now = dict(tensor_attributes(self.module))
        for name, (reference, version) in self._attributes.items():
            tensor = now.get(name)
            if tensor is None:
                yield True, f"{path}{name} was removed"
            elif tensor is not reference():
                yield True, f"{path}{name} was replaced"
            elif version_of(tensor) != version:
                yield True, f"{path}{name} was changed"

    def tensors(self) -> Iterator[Tensor]:
        """Yield the parameters and buffers."""
        return (tensor for state in self._tensors.values() if (tensor := state.reference()) is not None)

    def setting_changes(self, path: str) -> Iterator[tuple[bool, str]]:
        """Yield for each change of a setting, module or hook whether it is of this module alone, and its words.

        Args:
            path: the prefix of every name.

        """
        settings = _settings(self.module)
        own = set(self.own_writes)
        for name in {**self._settings, **settings}:
            before, after = self._settings.get(name), settings.get(name)
            if before is after or before == after or name in own:
                continue
            what = "added" if before is None else "removed" if after is None else "replaced"
            if name in _OF_MANY_MODULES:
                yield False, _OF_MANY_MODULES[name](before, after)
            elif isinstance(before or after, _Hook):
                yield True, f"the forward hook {before or after} of {path.rstrip('.') or 'the layer'} was {what}"
            elif isinstance(before or after, weakref.ReferenceType):
                yield True, f"{path}{name} was {what}"
            else:
                yield True, f"{path}{name} was changed from {before!r} to {after!r}"

    def tensor_changes(self, path: str) -> Iterator[str]:
        """Yield the changes of parameters and buffers in words; `path` is the prefix of every name."""
        now = {**parameters_of(self.module), **buffers_of(self.module)}
        for name in {**self._tensors, **now}:
            tensor = now.get(name)
            if name not in self._tensors:
                if tensor is not None:
                    yield f"{path}{name} was added"
                continue
            before = self._tensors[name]
            what = f"{path}{name} {list(before.shape)}"
            if tensor is None:
                yield f"{what} was removed"
            elif tensor is not before.reference():
                yield f"{what} was replaced"
            elif tensor.dtype != before.dtype:
                yield f"{what} was changed from {before.dtype} to {tensor.dtype}"
            elif tensor.requires_grad != before.trains:
                yield f"{what} was {'frozen' if before.trains else 'unfrozen'}"
            elif (version_of(tensor), _address(tensor)) != (before.version, before.address):
                yield f"{what} was changed"

    def written_buffers(self) -> Iterator[str]:
        """Yield the names of buffers that were written to, or replaced by others of the same shape, like statistics."""
        for name, buffer in buffers_of(self.module).items():
            if buffer is not None and name in self._tensors:
                before = self._tensors[name]
                written = buffer is not before.reference() or version_of(buffer) != before.version
                if written and _shape(buffer) == before.shape:
                    yield name

    def reassigned_tensors(self) -> Iterator[str]:
        """Yield the names of tensors among the attributes that were assigned."""
        for name, tensor in tensor_attributes(self.module):
            if name not in self._attributes or self._attributes[name][0]() is not tensor:
                yield name

    def reassigned_numbers(self) -> list[str]:
        """Return the names of attributes whose numbers have changed."""
        return _differing(self._numbers, _numbers_of(self.module))

    def tensors_besides_weights(self) -> Iterator[tuple[str, Tensor, bool]]:
        """Yield name, tensor and whether it was written to, as `Situation.tensors_besides_weights`."""
        known = {name: (state.reference, state.version, state.trains) for name, state in self._tensors.items()}
        for name, (reference, version) in self._attributes.items():
            known[name] = reference, version, False
        for name, (reference, version, trains) in known.items():
            tensor = reference()
            if tensor is not None:
                is_written = version_of(tensor) != version
                if is_written or not trains:
                    yield name, tensor, is_written


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""Attributes in which PyTorch stores parameters, buffers, modules and hooks."""
_NOT_COUNTED = _OF_EVERY_MODULE | COUNTED_BY_ENGINES


def tensor_attributes(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in plain attributes of a module, or in lists and dictionaries there, with their names."""
    for name, value in vars(module).items():
        if name in _OF_EVERY_MODULE:
            continue
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, dict):
            yield from ((f"{name}[{key!r}]", item) for key, item in value.items() if isinstance(item, Tensor))
        elif isinstance(value, (list, tuple)):
            yield from ((f"{name}[{index}]", item) for index, item in enumerate(value) if isinstance(item, Tensor))


Numbers = tuple[tuple[Any, int | float | None], ...]
"""The numbers in an attribute of a module with their keys, and None for tensors."""


def numbers_in(value: object) -> Numbers:
    """Return a number, with None as its key, or the numbers in a short list or dictionary; empty for anything else.

    The keys of tensors are included, so that a list to which a layer appends tensors differs after each evaluation.
    """
    if type(value) in _NUMBERS:
        return ((None, cast(float, value)),)
    if not isinstance(value, (dict, list, tuple)) or len(value) > _LONGEST_LOOKED_AT:
        return ()
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return tuple(
        (key, item if type(item) in _NUMBERS else None)
        for key, item in items
        if type(item) in _NUMBERS or isinstance(item, Tensor)
    )


def _numbers_of(module: nn.Module) -> dict[str, Numbers]:
    """Return what `numbers_in` returns for each attribute of a module that has numbers."""
    return {
        name: numbers
        for name, value in vars(module).items()
        if name not in _NOT_COUNTED and (numbers := numbers_in(value))
    }


def _differing(before: dict[str, Numbers], after: dict[str, Numbers]) -> list[str]:
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]


def _settings(module: nn.Module) -> dict[str, Any]:
    """Return the settings that determine what a module computes, apart from tensors.

    These are numbers, strings, lists of them, dictionaries of floats, and the module's children, functions and hooks.
    """
    found: dict[str, Any] = {}
    for name, value in vars(module).items():
        if name in COUNTED_BY_ENGINES:
            continue
        if type(value) in _PLAIN:
            found[name] = value
        elif type(value) in (list, tuple) and all(type(item) in _PLAIN for item in value):
            found[name] = tuple(value)
        elif type(value) is dict and value and all(type(item) is float for item in value.values()):
            found[name] = tuple(value.items())  # PEFT's scaling
        elif isinstance(value, _FUNCTIONS):
            found[name] = weakref.ref(value)
    attention = attention_of(vars(module).get("config"))
    if attention is not None:
        found["config._attn_implementation"] = attention
    for name, part in children_of(module).items():
        found[name] = part if part is None else weakref.ref(part)
    for hooks in (forward_pre_hooks(module), forward_hooks(module)):
        for number, hook in hooks.items():
            found[f"hook {number}"] = _Hook(getattr(hook, "__name__", type(hook).__name__))
    return found


def _address(tensor: Tensor) -> int:
    return tensor.data_ptr() if is_plain(tensor) and not is_partitioned(tensor) else 0


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return () if tensor.is_nested else tuple(tensor.shape)
