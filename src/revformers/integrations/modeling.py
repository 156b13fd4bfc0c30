"""transformers' models: what is saved is the network that runs.

A reversible model says in its configuration what it is. A decoder that is taken out of its model and put into another
one takes its dynamics along, and the configuration of that model knows nothing of it.
"""

import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

from wrapt import wrap_function_wrapper

from revformers.checkpoints.model_config import identity_of
from revformers.models.state import reversible_stack


def extend(module: ModuleType) -> None:
    """Refuse to save a model whose decoder is not what its configuration says."""
    wrap_function_wrapper(module, "PreTrainedModel.save_pretrained", _save_pretrained)


def _save_pretrained(ordinary: Callable[..., Any], model: Any, arguments: Any, keywords: Any) -> Any:
    reversible, told = reversible_stack(model), identity_of(model.config)
    if (reversible is None) != (told is None):
        decoder, config = ("reversible", "ordinary") if told is None else ("ordinary", "reversible")
        name = type(model).__name__
        if told is None and not type(model).__module__.startswith("transformers."):
            warnings.warn(
                f"The decoder in this {name} is reversible, and its configuration does not say so: it is loaded as a "
                f"reversible one only where the __init__ of {name} makes it so.",
                stacklevel=3,
            )
            return ordinary(*arguments, **keywords)
        raise ValueError(
            f"The decoder in this {name} is {decoder}, and its configuration is that of a model that is {config}, as "
            f"where a decoder was put into a finished model or two models share a configuration, so that another "
            f"network would be loaded. Call revformers.make_reversible(model, dynamics) on the whole model, save the "
            f"reversible part by itself, or give an ordinary model a configuration of its own."
        )
    return ordinary(*arguments, **keywords)
