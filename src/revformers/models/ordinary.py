"""A context in which a reversible model runs as the ordinary network that it was converted from."""

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import nn

from revformers.models.parts import reversible_stack

Model = TypeVar("Model", bound=nn.Module)

LEAVE_WEIGHTS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of PEFT's init_lora_weights that leave the weights of the model unchanged."""


@contextlib.contextmanager
def ordinary(model: Model) -> Iterator[Model]:
    """Run a model as the ordinary network in the block: residual updates, no update predictors, no adapters.

    The layers' own forward runs, so the logits equal those of the ordinary network with the same weights to the bit.
    Blocks may be nested, and the previous state is restored however the block ends. The backward pass of a forward
    pass outside the block must run outside it too.

    Args:
        model: a causal language model of transformers, reversible or ordinary, or a PEFT model around one.

    Yields:
        The same model.

    """
    stack = reversible_stack(model)
    before = stack is not None and stack.ordinary
    with _adapters_off(model):
        if stack is not None:
            stack.ordinary = True
        try:
            yield model
        finally:
            if stack is not None:
                stack.ordinary = before


def adapters_hold_weights(model: Any) -> bool:
    """Return whether an adapter of a PEFT model took over a part of the model's weights when it was created.

    PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA do so: switching such an adapter off does not restore the original model. An
    unknown initialisation is assumed to be one of them.
    """
    starts = (getattr(config, "init_lora_weights", True) for config in getattr(model, "peft_config", {}).values())
    return any(start not in LEAVE_WEIGHTS for start in starts)


@contextlib.contextmanager
def _adapters_off(model: Any) -> Iterator[None]:
    """Switch the adapters of a PEFT model off in the block; any other model is left unchanged."""
    if not hasattr(model, "disable_adapter"):
        yield
        return
    # PEFT freezes the adapters it switches off, and afterwards makes all of them trainable, even those frozen before.
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, requires_grad in trainable.items():
            parameter.requires_grad_(requires_grad)
