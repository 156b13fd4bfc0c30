"""The two halves of a causal language model: its decoder, up to the last hidden state, and its head, from there on.

Both run inside the model's own forward, so that scaled or capped logits, biases and tied weights are the family's own.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from revformers.models.discovery import find_stack


class InseparableHeadError(ValueError):
    """The loss of this model cannot be computed from its last hidden states a few tokens at a time."""

    @classmethod
    def of(cls, model: nn.Module) -> "InseparableHeadError":
        """Return the error for a model whose head does not take the decoder's last hidden state and nothing else."""
        return cls(
            f"The head of {type(model).__name__} cannot be applied to some tokens alone; train it with its own loss, "
            f"after revformers.set_head_loss(model, None)."
        )


class LastHiddenState:
    """What the decoder of a model returns in its first run within a block.

    Args:
        model: a causal language model of transformers.

    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._output: Any = None

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Keep what the decoder returns in the block."""
        decoder = find_stack(self._model).decoder
        forward = decoder.forward

        def record(*arguments: Any, **keywords: Any) -> Any:
            output = forward(*arguments, **keywords)
            if self._output is None:
                self._output = output
            return output

        with replaced_forward(decoder, record):
            yield

    @property
    def value(self) -> Tensor:
        """The last hidden state, (batch, tokens, width).

        Raises:
            InseparableHeadError: where the decoder returned none, or was not run.

        """
        hidden: Tensor | None = getattr(self._output, "last_hidden_state", None)
        if hidden is None:
            raise InseparableHeadError.of(self._model)
        return hidden

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """The head: logits (tokens, vocabulary) of hidden states (tokens, width)."""
        return partial(_apply_head, self._model, type(self._output))


def own_forward(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """Call the forward of the model's class, whatever stands in its place on the object; return its output object."""
    return type(model).forward(model, **{**inputs, "return_dict": True})


def _apply_head(model: nn.Module, kind: type, hidden: Tensor) -> Tensor:
    """Run the model's own forward with a decoder that returns `hidden` in an output object of this kind."""
    hidden = hidden[None]
    # What comes before the decoder needs some input; nothing reads what it makes of this one.
    inputs = {"inputs_embeds": hidden} if "inputs_embeds" in inspect.signature(type(model).forward).parameters else {}
    with replaced_forward(find_stack(model).decoder, lambda *_, **__: kind(last_hidden_state=hidden)):
        try:
            logits: Tensor = own_forward(model, inputs).logits
        except (AttributeError, IndexError, TypeError) as error:
            raise InseparableHeadError.of(model) from error
    return logits[0]


@contextlib.contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Put `forward` in the place of the module's on the object, for the length of the block."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
