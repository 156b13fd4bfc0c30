"""Compiling what the layers of a reversible model compute."""

from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import nn

from revformers.hf.fields import evaluate
from revformers.hf.state import require_reversible

Model = TypeVar("Model", bound=nn.Module)


def compile_layers(model: Model, *, fullgraph: bool = True, **options: Any) -> Model:
    """Compile the layers of a reversible model with `torch.compile`, in place; call it after `make_reversible`.

    Only what a layer computes is compiled, not the recurrence around it. Layers of the same structure share one
    compiled graph, however many they are, and both passes run the same graph, so rebuilt gradients stay equal to stored
    ones. ``torch.compile(model)``, ``model.compile()``, ``layer.compile()`` and ``torch_compile=True`` of a trainer
    leave the layers of a reversible model alone, and warn; after this call they compile what surrounds the layers.

    Args:
        model: a reversible causal language model of transformers, or a PEFT model around one.
        fullgraph: whether a layer must compile as one graph. What cannot is an error, and so is a model with more kinds
            of layers than ``torch._dynamo.config.recompile_limit``, which would otherwise run the rest uncompiled.
        options: what `torch.compile` takes besides, such as ``mode`` or ``backend``.

    Returns:
        The same model; `make_reversible` or `make_residual` undo it.

    Raises:
        ValueError: for a model that is not reversible.

    """
    reversible = require_reversible(model)
    # PyTorch counts recompilations by code object, so every model gets its own.
    own = FunctionType(evaluate.__code__.replace(), evaluate.__globals__)
    reversible.evaluate = torch.compile(own, fullgraph=fullgraph, **options)
    return model
