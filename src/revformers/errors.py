"""This library's own errors and warnings. Bad arguments raise Python's ``ValueError`` and ``TypeError``."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class UserError(ValueError):
    """A recipe, an option or the data it names cannot be used; the message is one sentence that says what to change."""


class NotReversibleError(ValueError):
    """This model cannot be given reversible dynamics; the message says which part of it stands in the way."""


class StateRangeError(ArithmeticError):
    """A hidden state or an update is not finite, or too large for fixed point; the message names the layer."""


class RebuildMismatchError(RuntimeError):
    """The backward pass rebuilt other states or used other weights than the forward pass: gradients would be wrong."""


class MissingPackageError(ImportError):
    """A package that is not installed is needed; the message says how to install it."""


class ConversionHint(UserWarning):
    """Pretrained weights were given dynamics far from the ordinary network's; `revformers.convert` loses less."""


class ModelFilesError(OSError, ValueError):
    """The files of a saved model are missing, damaged or do not fit each other; the message names the file."""


def require(condition: bool, name: str, expected: str, value: Any) -> None:
    """Raise UserError where the value of the field `name` is not what is expected of it."""
    if not condition:
        raise UserError(f"{name} must be {expected}, not {value}.")


@contextmanager
def as_user_error(beginning: str = "", kinds: tuple[type[Exception], ...] = (ValueError,)) -> Iterator[None]:
    """Turn errors about a value that the user gave into UserError, in one line; UserError and NotReversibleError stay.

    Args:
        beginning: what the message begins with, where another library says the rest, of which 300 characters are kept.
        kinds: the errors that the value may raise.

    """
    try:
        yield
    except (UserError, NotReversibleError):
        raise
    except kinds as error:
        message = " ".join(str(error).split())
        raise UserError(f"{beginning}: {message[:300]}" if beginning else message) from error


def require_package(name: str, extra: str, purpose: str) -> Any:
    """Return an optional package; raise MissingPackageError, with the extra that brings it, where it is not installed.

    Args:
        name: of the package, or of a module in it.
        extra: of revformers.
        purpose: what needs it, the subject of a sentence.

    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise
        message = f'{purpose} needs the package {package}: pip install "revformers[{extra}]".'
        raise MissingPackageError(message) from error
