"""The engine's own operators (`revformers.engine.ops`), run by themselves on the meta device.

To a dispatch mode such an operator is one, and what it makes and computes inside does not show. It depends on the
layouts of its arguments alone, so that a counter runs the plain kernels once for each of them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from revformers.engine.ops import KERNELS
from revformers.engine.packing import GROUP, packed_size
from revformers.planning.results import Layout, layout_of, tensor_of

Described = tuple[Any, ...]
"""Arguments, of which tensors are their layouts."""


def described(arguments: tuple[Any, ...]) -> Described:
    """Return what the cost of an operator depends on."""
    return tuple(layout_of(value) if isinstance(value, Tensor) else value for value in arguments)


def alone(operator: Any, arguments: Described) -> Callable[[], object]:
    """Return a call of the plain kernel of `operator`, with arguments that exist from now on."""
    return partial(KERNELS[operator], *(tensor_of(value) if _is_layout(value) else value for value in arguments))


def first_block(arguments: Described) -> Described:
    """Return the arguments of one block, which is what the temporaries of a kernel are made for at a time."""
    elements = arguments[0][0].numel()
    if elements <= GROUP:
        return arguments
    return tuple(_first_of(value, elements) if _is_layout(value) else value for value in arguments)


def _first_of(layout: Layout, elements: int) -> Layout:
    shape, _, dtype = layout
    if not shape:  # the one number of a verdict
        return layout
    of_states = shape.numel() == elements
    count = GROUP if of_states else packed_size(GROUP, shape.numel() // packed_size(elements, 1))
    return torch.Size([count]), (1,), dtype


def _is_layout(value: Any) -> bool:
    return isinstance(value, tuple)
