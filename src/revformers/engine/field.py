"""The type of a field, which computes a layer's update of the residual stream, and the parts that it consists of."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

Field = Callable[[Tensor], Tensor]
"""f_l: maps p[l], (batch, tokens, width) in the compute dtype, to the update, of the same shape."""


class OtherEvaluationError(Exception):
    """Raised by a field whose second evaluation differs from the first; the message follows the name of the step."""


def parts_of(value: Any) -> Iterator[Any]:
    """Yield the modules, the arguments and the functions of a field, which holds them in the objects that we build."""
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, partial):
        for part in (value.func, *value.args, *value.keywords.values()):
            yield from parts_of(part)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from parts_of(part)
    elif hasattr(value, "__wrapped__"):
        yield from parts_of(value.__wrapped__)
    elif is_dataclass(value):
        for attribute in fields(value):
            yield from parts_of(getattr(value, attribute.name))
    else:
        yield value


def modules_of(field: Any) -> Iterator[nn.Module]:
    """Yield the modules inside a field."""
    return (part for part in parts_of(field) if isinstance(part, nn.Module))
