"""Runs single operators of the engine (`revformers.engine.ops`) on the meta device.

A dispatch mode sees such an operator as a single call and not the tensors and operations inside it. Its cost depends
only on the layouts of its arguments, so a counter runs the plain kernels once for each layout.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from revformers.engine.ops import KERNELS, READ
from revformers.engine.packing import GROUP, packed_size
from revformers.planning.results import Layout, layout_of, tensor_of

Described = tuple[Any, ...]
"""Arguments of an operator, with every tensor replaced by its layout."""


def described(arguments: tuple[Any, ...]) -> Described:
    """Return the arguments with every tensor replaced by its layout, which determines the cost of an operator."""
    return tuple(layout_of(value) if isinstance(value, Tensor) else value for value in arguments)


def alone(operator: Any, arguments: Described) -> Callable[[], object]:
    """Return a call of the plain kernel of `operator` on new tensors, which this function allocates."""
    return partial(KERNELS[operator], *(tensor_of(value) if _is_layout(value) else value for value in arguments))


def fused_bytes(operator: Any, arguments: Described) -> int:
    """Return the bytes that one fused kernel for `operator` reads and writes: each tensor once, but a state it moves.

    On graphics processors the operators are such kernels (`revformers.engine.ops.cuda`), bound by memory.
    """
    sizes = [shape.numel() * dtype.itemsize for shape, _, dtype in filter(_is_layout, arguments)]
    if operator is READ:
        (shape, _, _), dtype, _ = arguments
        return sizes[0] + shape.numel() * dtype.itemsize
    return sum(sizes) + sizes[0]


def first_block(arguments: Described) -> Described:
    """Return the arguments of one block; a kernel allocates its temporaries for one block at a time."""
    elements = arguments[0][0].numel()
    if elements <= GROUP:
        return arguments
    return tuple(_first_of(value, elements) if _is_layout(value) else value for value in arguments)


def _first_of(layout: Layout, elements: int) -> Layout:
    shape, _, dtype = layout
    if not shape:  # the scalar that holds a verdict
        return layout
    of_states = shape.numel() == elements
    count = GROUP if of_states else packed_size(GROUP, shape.numel() // packed_size(elements, 1))
    return torch.Size([count]), (1,), dtype


def _is_layout(value: Any) -> bool:
    return isinstance(value, tuple)
