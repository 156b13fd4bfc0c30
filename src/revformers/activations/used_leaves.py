"""Hold every later evaluation of a field to the weights that the forward pass used, where results do not tell.

The states show every bit that a layer returned, but not every weight: the matrix B of a fresh LoRA adapter is zero, so
that the layer returns the same for any A, and only the gradient differs. So for every step the tape notes which leaves
of autograd the forward pass used: the tensors that no operation with gradients has made, such as weights, buffers,
masks and position tables. Each is remembered with its version, which PyTorch counts up whenever it is written to, and
its memory.

Leaves that autograd saves are seen when it saves them. Weights that it saves only as a copy (autocast), or that it
does not need (biases, weights in front of everything that trains), are found in the graph.

Nothing of this reads values, so the device is not waited for. Writing through `tensor.data` is not counted by PyTorch,
here or anywhere.
"""

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from revformers.activations.saved_bytes import plain_parts
from revformers.errors import RebuildMismatchError
from revformers.field import Field

REMEDY_FOR_WEIGHTS = (
    "Call backward before weights or adapters change (an optimizer step, set_adapter, merging, freezing, entering or "
    'leaving disable_adapter()), or train with revformers.set_activations(model, "store").'
)


class LeafCollector:
    """Gathers the leaves that one evaluation of a field uses.

    Holds no tensor, so that PyTorch, which keeps the hooks of a forward pass, keeps none through them.

    Args:
        hidden: p[l], the input of the field, which does not count.

    """

    def __init__(self, hidden: Tensor) -> None:
        self._hidden = weakref.ref(hidden)
        self._saved: list[weakref.ref[Tensor]] = []

    def add(self, tensor: Tensor) -> None:
        """Take note of a tensor that autograd saves."""
        base = tensor._base
        origin = tensor if base is None else base
        if origin.is_leaf:
            self._saved.append(weakref.ref(origin))

    def saved(self) -> dict[int, Tensor]:
        """Return by id the saved leaves that outlive the evaluation: the field has not made them."""
        hidden = self._hidden()
        leaves = (leaf for reference in self._saved if (leaf := reference()) is not None)
        return {id(leaf): leaf for leaf in leaves if leaf is not hidden}


class _UsedLeaf:
    """A leaf as the forward pass used it."""

    __slots__ = ("is_parameter", "is_saved", "reference", "shape", "storages", "trains", "version")

    def __init__(self, leaf: Tensor, is_saved: bool) -> None:
        self.reference = weakref.ref(leaf)
        self.shape = leaf.shape
        self.is_parameter = isinstance(leaf, nn.Parameter)
        self.is_saved = is_saved
        self.trains = leaf.requires_grad
        self.version = version_of(leaf)
        # A weak reference, like a strong one, keeps the number of a block from being given to another.
        self.storages = [StorageWeakRef(part.untyped_storage()) for part in _parts(leaf)]

    def is_unchanged(self) -> bool:
        """Whether the leaf has its memory and was not written to since; one that is gone counts as unchanged."""
        leaf = self.reference()
        return leaf is None or (
            version_of(leaf) == self.version
            and [part.untyped_storage()._cdata for part in _parts(leaf)] == [known.cdata for known in self.storages]
        )


class UsedLeaves:
    """The leaves that the first evaluation of a field used, to hold every later one to them.

    Args:
        collector: what saw every tensor that autograd saved.
        update: what the evaluation returned.
        hidden: p[l], its input, in the graph.

    Attributes:
        looks_at_graph: whether some weights are found in the graph alone, so that `require_same` needs it.

    """

    def __init__(self, collector: LeafCollector, update: Tensor, hidden: Tensor) -> None:
        saved = collector.saved()
        trained, goes_on = _leaves_of_graph([update.grad_fn], hidden)
        self._leaves = [_UsedLeaf(leaf, key in saved) for key, leaf in (saved | trained).items()]
        # A graph that goes on beyond the layer (an encoder's states, trained position embeddings) cannot be told from
        # the layer's own in a later evaluation, whose input has no node: its weights would be taken for new ones.
        self.looks_at_graph = not goes_on and not trained.keys() <= saved.keys()

    def require_unchanged(self, name: str, field: Field) -> None:
        """Raise RebuildMismatchError where a leaf was written to, or given other memory, since the forward pass.

        Args:
            name: what messages call the step.
            field: f_l, in which the name of a weight is looked up.

        """
        for used in self._leaves:
            if not used.is_unchanged():
                raise RebuildMismatchError(
                    f"{_describe(used.reference(), used, field)} of {name} was changed between the forward pass and "
                    f"the backward pass, so the gradients would be wrong. {REMEDY_FOR_WEIGHTS}"
                )

    def require_same(
        self,
        collector: LeafCollector,
        graph: Iterable[Any],
        hidden: Tensor,
        name: str,
        field: Field,
        *,
        complete: bool,
    ) -> None:
        """Raise RebuildMismatchError where a later evaluation used other weights than the forward pass.

        Args:
            collector: what saw every tensor that autograd saved of the later evaluation.
            graph: where `looks_at_graph`, nodes of the later evaluation's graph, from which its weights are reached.
            hidden: what the later evaluation was given.
            name: what messages call the step.
            field: f_l, in which the name of a weight is looked up.
            complete: whether the later evaluation came to its end.

        """
        saved = collector.saved()
        if not self.looks_at_graph and saved.keys() == {id(used.reference()) for used in self._leaves if used.is_saved}:
            return
        again: dict[int, Tensor] = {key: leaf for key, leaf in saved.items() if isinstance(leaf, nn.Parameter)}
        if self.looks_at_graph:
            again |= _leaves_of_graph(graph, hidden)[0]
        first = {id(leaf) for used in self._leaves if (leaf := used.reference()) is not None}
        # What brings frozen weights to the device for the length of an evaluation makes new ones every time.
        are_brought = any(used.reference() is None for used in self._leaves if used.is_parameter and not used.trains)
        for key, leaf in again.items():
            if key not in first and not (are_brought and not leaf.requires_grad):
                raise RebuildMismatchError(
                    f"{_describe(leaf, leaf, field)} of {name} was used by the backward pass to evaluate the layer "
                    f"again, and not by the forward pass, so the gradients would be wrong. {REMEDY_FOR_WEIGHTS}"
                )
        for used in self._leaves:
            # An evaluation that ends early has saved all that autograd saves.
            expected = used.is_parameter and used.trains and (used.is_saved or (complete and self.looks_at_graph))
            leaf = used.reference()
            if expected and (leaf is None or id(leaf) not in again):
                raise RebuildMismatchError(
                    f"{_describe(leaf, used, field)} of {name} was used by the forward pass, and not by the backward "
                    f"pass to evaluate the layer again, so the gradients would be wrong. {REMEDY_FOR_WEIGHTS}"
                )


def _leaves_of_graph(nodes: Iterable[Any], hidden: Tensor) -> tuple[dict[int, Tensor], bool]:
    """Return by id the leaves that some nodes are computed from, and whether the graph goes on beyond the layer.

    The graph ends at `hidden`. Autograd numbers its nodes, so what has a lower number than the node of `hidden` was
    there before the layer ran: only copies of weights in another dtype, which autocast makes once, are looked into.
    """
    start = hidden.grad_fn
    first = -1 if start is None else start._sequence_nr()
    seen = {start, None}
    to_visit = list(set(nodes) - seen)
    leaves: dict[int, Tensor] = {}
    goes_on = False
    while to_visit:
        node = to_visit.pop()
        inputs = node.next_functions
        if not inputs:
            leaf = getattr(node, "variable", None)
            if leaf is not None and leaf is not hidden:
                leaves[id(leaf)] = leaf
        elif node._sequence_nr() > first:
            for source, _ in inputs:
                if source not in seen:
                    seen.add(source)
                    to_visit.append(source)
        else:
            weights = [source for source, _ in inputs if hasattr(source, "variable")]
            goes_on |= len(weights) < len(inputs)
            to_visit += weights
    return leaves, goes_on


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was written to in place; inference tensors do not count."""
    return 0 if tensor.is_inference() else tensor._version


def _parts(leaf: Tensor) -> Iterable[Tensor]:
    return (leaf,) if type(leaf) in (Tensor, nn.Parameter) else plain_parts(leaf)


def _describe(leaf: Tensor | None, like: Tensor | _UsedLeaf, field: Field) -> str:
    """Return what a message calls a leaf, by its name in the module that the field evaluates where it has one."""
    shape = list(like.shape)
    for module in _modules_of(field):
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor is leaf:
                return f"{name} {shape}"
    return f"A tensor {shape}" if leaf is not None and not isinstance(leaf, nn.Parameter) else f"A weight {shape}"


def _modules_of(value: Any) -> Iterator[nn.Module]:
    """Yield the modules that a field is a function of."""
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, partial):
        for part in (value.func, *value.args, *value.keywords.values()):
            yield from _modules_of(part)
    elif hasattr(value, "__wrapped__"):
        yield from _modules_of(value.__wrapped__)
    elif is_dataclass(value):
        for attribute in dataclass_fields(value):
            yield from _modules_of(getattr(value, attribute.name))
