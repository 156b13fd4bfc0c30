"""The two parts of a causal language model: the decoder, up to the last hidden state, and the head after it.

Both run inside the model's own forward, which handles scaled or capped logits, biases and tied weights.
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
        """Return the error for a model whose head reads more than the decoder's last hidden state."""
        return cls(
            f"The head of {type(model).__name__} cannot be applied to a few tokens at a time; train it with its own "
            f"loss, after revformers.set_head_loss(model, None)."
        )


class LastHiddenState:
    """The output of a model's decoder in its first run within a block.

    Args:
        model: a causal language model of transformers.

    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._output: Any = None

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record the output of the decoder in the block."""
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
            InseparableHeadError: if the decoder returned none, or did not run.

        """
        hidden: Tensor | None = getattr(self._output, "last_hidden_state", None)
        if hidden is None:
            raise InseparableHeadError.of(self._model)
        return hidden

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """The head, which maps hidden states (tokens, width) to logits (tokens, vocabulary)."""
        return partial(_apply_head, self._model, type(self._output))


def own_forward(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """Call the forward of the model's class, even if it is replaced on the object; return the output object."""
    return type(model).forward(model, **{**inputs, "return_dict": True})


def _apply_head(model: nn.Module, kind: type, hidden: Tensor) -> Tensor:
    """Run the model's own forward with a decoder that returns `hidden` in an output object of class `kind`."""
    hidden = hidden[None]
    # The code before the decoder needs some input; the replaced decoder ignores its result.
    inputs = {"inputs_embeds": hidden} if "inputs_embeds" in inspect.signature(type(model).forward).parameters else {}
    with replaced_forward(find_stack(model).decoder, lambda *_, **__: kind(last_hidden_state=hidden)):
        try:
            logits: Tensor = own_forward(model, inputs).logits
        except (AttributeError, IndexError, TypeError) as error:
            raise InseparableHeadError.of(model) from error
    return logits[0]


@contextlib.contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the forward of `module` on the object, for the duration of the block."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
