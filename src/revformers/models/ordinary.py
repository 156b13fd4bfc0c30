"""Running a reversible model as the ordinary network that it was converted from, for a while."""

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import nn

from revformers.models.state import reversible_stack

Model = TypeVar("Model", bound=nn.Module)

LEAVE_WEIGHTS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of PEFT's init_lora_weights that leave the weights of the model as they are."""


@contextlib.contextmanager
def ordinary(model: Model) -> Iterator[Model]:
    """Run a model as the ordinary network for the length of the block: residual updates, no predictors, no adapters.

    The layers are transformers' own, so the logits are those of the ordinary network to the bit as long as its
    weights are. Blocks may be nested, and what was in place before comes back however the block ends. The backward
    pass of a forward pass outside the block belongs outside it as well.

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
    """Say whether adapters of a PEFT model took a part of its weights into themselves as they were made.

    PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA begin so: with such an adapter off the model is not what it was before. An
    initialisation that is not known is taken to be one of them.
    """
    starts = (getattr(config, "init_lora_weights", True) for config in getattr(model, "peft_config", {}).values())
    return any(start not in LEAVE_WEIGHTS for start in starts)


@contextlib.contextmanager
def _adapters_off(model: Any) -> Iterator[None]:
    """Switch the adapters of a PEFT model off; one without, or with them off already, stays as it is."""
    if not hasattr(model, "disable_adapter"):
        yield
        return
    # PEFT freezes what it switches off, and afterwards lets all of it be trained, whether it was before or not.
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, requires_grad in trainable.items():
            parameter.requires_grad_(requires_grad)
