"""Compilation of the layers of a reversible model with `torch.compile`."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from revformers.models.fields import Evaluate, evaluate
from revformers.models.parts import require_reversible
from revformers.private_api import with_own_recompilations

Model = TypeVar("Model", bound=nn.Module)


def compile_layers(model: Model, *, fullgraph: bool = True, **options: Any) -> Model:
    """Compile the layers of a reversible model with `torch.compile`, in place; call it after `make_reversible`.

    The computation of each layer is compiled, but not the recurrence around it. All layers of the same structure share
    one compiled graph. Both passes run the same graph, so rebuilt gradients stay equal to stored ones.
    ``torch.compile(model)``, ``model.compile()``, ``layer.compile()`` and ``torch_compile=True`` of a trainer do not
    compile the layers of a reversible model, and warn; after this call they compile what surrounds the layers.

    Batches of the first shape get a static graph and batches of all other shapes share a dynamic one, unless `options`
    include ``dynamic``. Passes without gradients (generation) have graphs of their own; once they reach PyTorch's
    recompilation limit, the layers run uncompiled.

    Args:
        model: a reversible causal language model of transformers, or a PEFT model around one.
        fullgraph: whether a layer must compile as one graph. A graph break is then an error, and so is a model with
            more kinds of layers than ``torch.compiler.config.recompile_limit``; if false, the rest runs uncompiled.
        options: further keywords of `torch.compile`, such as ``mode`` or ``backend``.

    Returns:
        The same model. `make_reversible` and `make_residual` undo the compilation.

    Raises:
        ValueError: if the model is not reversible.

    """
    require_reversible(model).evaluate = _CompiledEvaluate(fullgraph, options)
    return model


class _CompiledEvaluate:
    """Compiled versions of `evaluate`; the shape of the batch alone selects one of them.

    PyTorch's default would compile a dynamic graph at the second shape and from then on use it for the first shape
    too. The backward pass could then evaluate a layer by another graph, which saves other tensors, than the forward
    pass did.
    """

    def __init__(self, fullgraph: bool, options: dict[str, Any]) -> None:
        self._first: torch.Size | None = None
        any_shape = options if "dynamic" in options else {**options, "dynamic": True}
        self._of_first = _compiled(fullgraph=fullgraph, **options)
        self._of_any = _compiled(fullgraph=fullgraph, **any_shape)
        self._without_gradients = _compiled(fullgraph=False, **options)

    def __call__(self, function: Callable[..., Any], layer: nn.Module, inputs: tuple[Any, ...], hidden: Tensor) -> Any:
        """Return the result of `evaluate`."""
        if not torch.is_grad_enabled():
            return self._without_gradients(function, layer, inputs, hidden)
        if self._first is None:
            self._first = hidden.shape
        chosen = self._of_first if hidden.shape == self._first else self._of_any
        return chosen(function, layer, inputs, hidden)


def _compiled(**options: Any) -> Evaluate:
    compiled: Evaluate = torch.compile(with_own_recompilations(evaluate), **options)
    return compiled
