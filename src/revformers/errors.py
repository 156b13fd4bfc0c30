"""This library's own errors and warnings. Bad arguments raise Python's ``ValueError`` and ``TypeError``."""

import weakref
from typing import Protocol


class NotReversibleError(ValueError):
    """This model cannot be given reversible dynamics; the message says which part of it stands in the way."""


class Watcher(Protocol):
    """An object that knows more of the training that an error ends."""

    def explain(self, error: Exception) -> str:
        """Return a note for the error."""
        ...


_WATCHERS: "weakref.WeakSet[Watcher]" = weakref.WeakSet()


def watch(watcher: Watcher) -> None:
    """Have every `StateRangeError` and `RebuildMismatchError` explained by `watcher`, for as long as that lives.

    A trainer's callbacks are not told of an error that ends the training: so the errors ask.
    """
    _WATCHERS.add(watcher)


def unwatch(watcher: Watcher) -> None:
    """End what `watch` began."""
    _WATCHERS.discard(watcher)


class _Explained(Exception):
    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        for watcher in list(_WATCHERS):
            self.add_note(watcher.explain(self))


class StateRangeError(_Explained, ArithmeticError):
    """A hidden state or an update is not finite, or too large for fixed point; the message names the layer."""


class RebuildMismatchError(_Explained, RuntimeError):
    """The backward pass rebuilt other states or used other weights than the forward pass: gradients would be wrong."""


class ConversionHint(UserWarning):
    """Pretrained weights were given dynamics far from the ordinary network's; `revformers.convert` loses less."""


class ModelFilesError(OSError, ValueError):
    """The files of a saved model are missing, damaged or do not fit each other; the message names the file."""
