"""Teachers for distillation: the ordinary network, whose next-token distributions a converted model should keep."""

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
from revformers.models.parts import update_predictors
from revformers.reversible import make_residual

NOT_READ = frozenset({"labels", "shift_labels", "num_items_in_batch", "logits_to_keep", "use_cache"})
"""Inputs of a model that do not change its hidden states."""


class Teacher(ABC):
    """An ordinary network that runs without gradients and without dropout.

    Callers first get the last hidden states of all tokens, then the logits of a few tokens at a time.
    """

    @abstractmethod
    def hidden(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return the last hidden states, (batch, tokens, width), of a batch that the student received.

        Raises:
            ValueError: if the batch has a key-value cache, because the student has already written to it.

        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits, (tokens, vocabulary), of some of the last `hidden` states, (tokens, width)."""


class FrozenCopy(Teacher):
    """A copy of a model as the ordinary network, with its current weights, on the device of the batch.

    Args:
        model: a causal language model of transformers.

    Raises:
        ValueError: if it is a PEFT model, whose ordinary network needs no copy.

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
    """The student with its adapters off, as the ordinary network: a teacher that needs no memory for weights.

    Args:
        model: the student, a PEFT model that trains only adapters and update predictors.

    Raises:
        ValueError: if the model has no adapters, trains weights that the teacher uses, or has adapters that took over a
            part of its weights when they were created.

    """

    def __init__(self, model: nn.Module) -> None:
        if not hasattr(model, "disable_adapter"):
            raise ValueError(
                f"AdapterOff takes a PEFT model, not {type(model).__name__}; use FrozenCopy(model) if all weights are "
                f"trained."
            )
        if adapters_hold_weights(model):
            raise ValueError(
                "AdapterOff is not the original network, because init_lora_weights moved a part of the weights into "
                "the adapter; leave init_lora_weights out, or use FrozenCopy of the model before it got adapters."
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
                f"AdapterOff would change with training, because {trained[0]} is trained and is not an adapter; freeze "
                f"it, or use FrozenCopy of the model before it got adapters."
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
        # Only if needed, because switching adapters visits the whole model, and this runs for every chunk.
        adapted = any(hasattr(module, "enable_adapters") for module in outside)
        with ordinary(self._model) if adapted else contextlib.nullcontext(), _evaluating(outside):
            return self._head(hidden)


def _run(model: nn.Module, inputs: Mapping[str, Any]) -> LastHiddenState:
    """Run a teacher's model on the inputs of the student, and return its last hidden state."""
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
    """Set each module, without its children, to evaluation mode for the duration of the block."""
    modes = {module: module.training for module in modules}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
