"""Compiling what the layers of a reversible model compute."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from revformers.models.fields import Evaluate, evaluate
from revformers.models.state import require_reversible
from revformers.private_api import with_own_recompilations

Model = TypeVar("Model", bound=nn.Module)


def compile_layers(model: Model, *, fullgraph: bool = True, **options: Any) -> Model:
    """Compile the layers of a reversible model with `torch.compile`, in place; call it after `make_reversible`.

    Only what a layer computes is compiled, not the recurrence around it. Layers of the same structure share one
    compiled graph, however many they are, and both passes run the same graph, so rebuilt gradients stay equal to stored
    ones. ``torch.compile(model)``, ``model.compile()``, ``layer.compile()`` and ``torch_compile=True`` of a trainer
    leave the layers of a reversible model alone, and warn; after this call they compile what surrounds the layers.

    The batches of the first shape get a graph for that shape alone, all others one for every shape, unless `options`
    say otherwise (`dynamic`). Without gradients (generation) there are others again, and where PyTorch's limit of
    graphs is reached the layers run uncompiled.

    Args:
        model: a reversible causal language model of transformers, or a PEFT model around one.
        fullgraph: whether a layer must compile as one graph. What cannot is an error, and so is a model with more kinds
            of layers than ``torch.compiler.config.recompile_limit``, which would otherwise run the rest uncompiled.
        options: what `torch.compile` takes besides, such as ``mode`` or ``backend``.

    Returns:
        The same model; `make_reversible` or `make_residual` undo it.

    Raises:
        ValueError: for a model that is not reversible.

    """
    require_reversible(model).evaluate = _CompiledEvaluate(fullgraph, options)
    return model


class _CompiledEvaluate:
    """Compiled versions of `evaluate`: the shape of a batch decides for one of them, whenever it is evaluated.

    PyTorch would compile the second shape anew, for every shape, and run that graph for the first one too from then on:
    also to evaluate a layer again whose first evaluation ran the old graph, which saves other tensors.
    """

    def __init__(self, fullgraph: bool, options: dict[str, Any]) -> None:
        self._first: torch.Size | None = None
        any_shape = options if "dynamic" in options else {**options, "dynamic": True}
        self._of_first = _compiled(fullgraph=fullgraph, **options)
        self._of_any = _compiled(fullgraph=fullgraph, **any_shape)
        self._without_gradients = _compiled(fullgraph=False, **options)

    def __call__(self, function: Callable[..., Any], layer: nn.Module, inputs: tuple[Any, ...], hidden: Tensor) -> Any:
        """Return what `evaluate` does."""
        if not torch.is_grad_enabled():
            return self._without_gradients(function, layer, inputs, hidden)
        if self._first is None:
            self._first = hidden.shape
        chosen = self._of_first if hidden.shape == self._first else self._of_any
        return chosen(function, layer, inputs, hidden)


def _compiled(**options: Any) -> Evaluate:
    compiled: Evaluate = torch.compile(with_own_recompilations(evaluate), **options)
    return compiled
