"""Parts of a step on the meta device that come many times over, run once: steps of the states, and chunks of the loss.

What such a part leaves behind is known: a number at most. What it takes meanwhile, and what it computes, depends on the
layouts of its arguments alone. So it is run by itself, unseen, and the counters are told of it every time it comes.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, _get_current_dispatch_mode_stack

from revformers.dynamics.base import Coefficients
from revformers.engine.ops import cpu as plain
from revformers.head import chunked_sum
from revformers.planning.meter import StorageCounter
from revformers.planning.results import Layout, layout_of, tensor_of
from revformers.planning.work import WorkCounter

MOST = 10_000
"""Parts that are remembered; after that many they are forgotten."""


@dataclass(frozen=True)
class _Part:
    """What a part takes: bytes at most at a time, and operators as `Work` counts them."""

    workspace: int
    operators: Counter[tuple[int, int]]


_Evaluated = tuple[Tensor, dict[Tensor, Tensor]]

_KERNELS: dict[Hashable, _Part] = {}


class RememberedParts:
    """Stands in for the repeated parts of one step.

    Args:
        answers: the mode that answers questions about numbers.

    """

    def __init__(self, answers: TorchDispatchMode) -> None:
        self._answers = answers

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the parts run so for the length of the block."""
        names = [(plain, "advance"), (plain, "retreat"), (plain, "_read"), (chunked_sum, "_evaluate")]
        originals = [getattr(module, name) for module, name in names]
        stand_ins = [*map(self._kernel, originals[:-1]), self._chunk(originals[-1])]
        try:
            for (module, name), stand_in in zip(names, stand_ins, strict=True):
                setattr(module, name, stand_in)
            yield
        finally:
            for (module, name), original in zip(names, originals, strict=True):
                setattr(module, name, original)

    def _kernel(self, kernel: Callable[..., Any]) -> Callable[..., Any]:
        """Stand in for a kernel of the states, which writes to its arguments."""

        def run(*arguments: Any) -> Any:
            expands = any(isinstance(value, Coefficients) and abs(value.previous) > 1 for value in arguments)
            if expands or not arguments[0].is_meta:  # it returns a tensor, or has numbers
                return kernel(*arguments)
            if len(_KERNELS) >= MOST:
                _KERNELS.clear()
            self._take(_KERNELS, (kernel, *map(_layout, arguments)), lambda: partial(kernel, *arguments))
            return None

        return run

    def _chunk(self, evaluate: Callable[..., _Evaluated]) -> Callable[..., _Evaluated]:
        """Stand in for what evaluates a chunk of a loss; the first of its kind is evaluated.

        The gradients of parameters that a later one returns would be added to those of the first and freed. So they are
        added here, and not returned.
        """
        layouts: dict[Hashable, tuple[Layout, dict[Tensor | None, Layout]]] = {}
        parts: dict[Hashable, _Part] = {}

        def run(function: Callable[..., Tensor], first: Tensor, further: list[Tensor]) -> _Evaluated:
            key = tuple(map(_layout, (first, *further)))
            if key not in layouts or not first.is_meta:
                total, gradients = evaluate(function, first, further)
                of_leaves = {None if leaf is first else leaf: layout_of(value) for leaf, value in gradients.items()}
                layouts[key] = layout_of(total), of_leaves
                return total, gradients
            of_total, of_leaves = layouts[key]

            def part() -> Callable[[], None]:
                sums = {leaf: _sum_of(layout) for leaf, layout in of_leaves.items() if leaf is not None}

                def evaluate_and_add() -> None:
                    _, gradients = evaluate(function, first, further)
                    gradients.pop(first, None)
                    chunked_sum._add(sums, gradients)

                return evaluate_and_add

            self._take(parts, key, part)
            return tensor_of(of_total), {first: tensor_of(of_leaves[None])} if None in of_leaves else {}

        return run

    def _take(self, known: dict[Hashable, _Part], key: Hashable, prepare: Callable[[], Callable[[], object]]) -> None:
        """Tell all counters of a part, which is prepared and run if none like it is known."""
        if key not in known:
            with _disable_current_modes(), self._answers:
                part = prepare()
                with _Workspace(torch.device("meta")) as workspace, WorkCounter() as work:
                    part()
            known[key] = _Part(workspace.peak.total, work.operators)
        for mode in _get_current_dispatch_mode_stack():
            if isinstance(mode, StorageCounter):
                mode.add_workspace(known[key].workspace)
            elif isinstance(mode, WorkCounter):
                mode.operators.update(known[key].operators)


class _Workspace(StorageCounter):
    """Counts the storages that are made while it watches, and not those that are there before."""

    def _category(self) -> str:
        return "working"

    def _add(self, storage: torch.UntypedStorage, category: str) -> None:
        if category == "working":
            super()._add(storage, category)


def _sum_of(layout: Layout) -> Tensor:
    """Return the sum that gradients of this layout are added to."""
    shape, strides, dtype = layout
    return tensor_of((shape, strides, torch.promote_types(dtype, torch.float32)))


def _layout(value: Any) -> Hashable:
    return layout_of(value) if isinstance(value, Tensor) else value
