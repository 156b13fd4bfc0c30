"""The ordinary network as a teacher: the next-token distributions that a converted model is to keep."""

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from revformers.models.discovery import find_stack, unwrap
from revformers.models.fields import holds_cache
from revformers.models.hidden import LastHiddenState, own_forward
from revformers.models.ordinary import adapters_hold_weights, ordinary
from revformers.models.state import update_predictors
from revformers.reversible import make_residual

NOT_READ = frozenset({"labels", "shift_labels", "num_items_in_batch", "logits_to_keep", "use_cache"})
"""Inputs of a model that do not change its hidden states."""


class Teacher(ABC):
    """An ordinary network that runs without gradients and without dropout.

    Its logits are asked for a few tokens at a time, so it gives the last hidden states of all tokens first.
    """

    @abstractmethod
    def hidden(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return the last hidden states, (batch, tokens, width), of a batch as the student gets it.

        Raises:
            ValueError: for a batch that goes on from a key-value cache, which the student has written to.

        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits, (tokens, vocabulary), of some of the last `hidden` states, (tokens, width)."""


class FrozenCopy(Teacher):
    """A copy of a model as the ordinary network, with the weights that it has now; it follows the batch's device.

    Args:
        model: a causal language model of transformers.

    Raises:
        ValueError: for a PEFT model, whose ordinary network needs no copy.

    """

    def __init__(self, model: nn.Module) -> None:
        if hasattr(model, "disable_adapter"):
            raise ValueError(
                f"FrozenCopy takes a model without adapters, not {type(model).__name__}; use AdapterOff(model), which "
                f"needs no copy."
            )
        self._model = make_residual(copy.deepcopy(model)).eval().requires_grad_(False)
        self._head: Callable[[Tensor], Tensor] | None = None

    @torch.no_grad()
    def hidden(self, inputs: Mapping[str, Any]) -> Tensor:
        """See `Teacher`."""
        self._model.to(next(value.device for value in inputs.values() if isinstance(value, Tensor)))
        state = _run(self._model, inputs)
        self._head = state.head
        return state.value

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """See `Teacher`."""
        assert self._head is not None, "hidden comes before logits"
        return self._head(hidden)


class AdapterOff(Teacher):
    """The student itself as the ordinary network, its adapters off: a teacher that takes no memory for weights.

    Args:
        model: the student, a PEFT model that trains nothing but adapters and update predictors.

    Raises:
        ValueError: for a model without adapters, one that trains weights which the teacher uses, or adapters that took
            a part of the weights into themselves as they were made.

    """

    def __init__(self, model: nn.Module) -> None:
        if not hasattr(model, "disable_adapter"):
            raise ValueError(
                f"AdapterOff takes a PEFT model, not {type(model).__name__}; use FrozenCopy(model) where all weights "
                f"are trained."
            )
        if adapters_hold_weights(model):
            raise ValueError(
                "AdapterOff would learn from what init_lora_weights leaves of the model, which is not the model; leave "
                "init_lora_weights out, or use FrozenCopy of the model before it got adapters."
            )
        own = {id(parameter) for module in update_predictors(model) for parameter in module.parameters()}
        with ordinary(model):
            trained = [
                name
                for name, parameter in model.named_parameters()
                if parameter.requires_grad and id(parameter) not in own
            ]
        if trained:
            raise ValueError(
                f"AdapterOff would change with training, as {trained[0]} is trained and is no adapter; freeze it, or "
                f"use FrozenCopy of the model before it got adapters."
            )
        self._model = model
        self._head: Callable[[Tensor], Tensor] | None = None

    @torch.no_grad()
    def hidden(self, inputs: Mapping[str, Any]) -> Tensor:
        """See `Teacher`."""
        inner = unwrap(self._model)
        with ordinary(self._model), _evaluating(inner.modules()):
            state = _run(inner, inputs)
        self._head = state.head
        return state.value

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """See `Teacher`."""
        assert self._head is not None, "hidden comes before logits"
        inner = unwrap(self._model)
        decoder = set(find_stack(inner).decoder.modules())
        outside = [module for module in inner.modules() if module not in decoder]
        # Switching adapters walks through the whole model, and this is called for every chunk.
        adapted = any(hasattr(module, "enable_adapters") for module in outside)
        with ordinary(self._model) if adapted else contextlib.nullcontext(), _evaluating(outside):
            return self._head(hidden)


def _run(model: nn.Module, inputs: Mapping[str, Any]) -> LastHiddenState:
    """Run a model on what its student got, and return its last hidden state."""
    if holds_cache(inputs):
        raise ValueError("A teacher reads whole sequences; leave the key-value cache out of the batch.")
    state = LastHiddenState(model)
    with state.recorded():
        own_forward(
            model,
            {key: value for key, value in inputs.items() if key not in NOT_READ}
            | {"use_cache": False, "logits_to_keep": 1},
        )
    return state


@contextlib.contextmanager
def _evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put modules, each for itself, into evaluation mode for the length of the block."""
    modes = {module: module.training for module in modules}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
