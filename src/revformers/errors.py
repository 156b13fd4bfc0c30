"""Errors and warnings of this library. Invalid arguments raise Python's ``ValueError`` and ``TypeError``."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LONGEST_REASON = 300
_CUT = " [...]"


class UserError(ValueError):
    """A recipe, an option or the data it names cannot be used; the message says what to change."""


class DivergedError(UserError):
    """The loss or the weights of a run are no longer finite, and no model is saved; the message says since when."""


class NotReversibleError(ValueError):
    """This model cannot be given reversible dynamics; the message says which part of it is the cause."""


class StateRangeError(ArithmeticError):
    """A hidden state or an update is not finite, or too large for fixed point; the message names the layer."""


class RebuildMismatchError(RuntimeError):
    """The backward pass rebuilt other states or used other weights than the forward pass; gradients would be wrong."""


class MissingPackageError(ImportError):
    """A required package is not installed; the message says how to install it."""


class ConversionHint(UserWarning):
    """Pretrained weights were given dynamics far from the ordinary network's; `revformers.convert` preserves more."""


class ModelFilesError(OSError, ValueError):
    """Files of a saved model are missing, damaged or inconsistent; the message names the file."""


def require(condition: bool, name: str, expected: str, value: Any) -> None:
    """Raise UserError if `condition` is false; the message says that the field `name` must be `expected`."""
    if not condition:
        raise UserError(f"{name} must be {expected}, not {value}.")


def counted(number: float, noun: str) -> str:
    """Return a number with a regular noun in the singular or the plural, such as "1 record" or "2,000 records"."""
    written = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{written} {noun}{'' if number == 1 else 's'}"


def reason_of(error: BaseException) -> str:
    """Return the message of another library's error as a clause: one line of at most 300 characters, without a stop.

    An error without a message, or with a mere key as its message, is named by its type.
    """
    reason = _line_of(error).rstrip(" .")
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[: _LONGEST_REASON - len(_CUT)]}{_CUT}"


def reason_with_type(error: BaseException) -> str:
    """Return `reason_of` after the name of the error's type, for errors whose message says little without it."""
    kind = type(error).__name__
    return kind if (reason := reason_of(error)) == kind else f"{kind}: {reason.removeprefix(f'{kind}: ')}"


def _line_of(error: BaseException) -> str:
    """Return the message of an error on one line; the name of its type is added to a key, and stands for no message."""
    line, kind = " ".join(str(error).split()), type(error).__name__
    if not line.strip(" ."):
        return kind
    return f"{kind}: {line}" if isinstance(error, KeyError) else line


@contextmanager
def as_user_error(beginning: str = "", kinds: tuple[type[Exception], ...] = (ValueError,)) -> Iterator[None]:
    """Convert errors about a value from the user into UserError; UserError and NotReversibleError pass unchanged.

    Args:
        beginning: the start of the message, if the rest comes from another library and is cut to 300 characters.
        kinds: the errors to convert.

    """
    try:
        yield
    except (UserError, NotReversibleError):
        raise
    except kinds as error:
        raise UserError(f"{beginning}: {reason_of(error)}." if beginning else _line_of(error)) from error


def require_package(name: str, extra: str, purpose: str) -> Any:
    """Return an optional package; raise MissingPackageError, which names the extra, if it is not installed.

    Args:
        name: the package, or a module in it.
        extra: the extra of revformers that installs it.
        purpose: the feature that needs it, as the subject of a sentence.

    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise
        message = f'{purpose} needs the package {package}: pip install "revformers[{extra}]".'
        raise MissingPackageError(message) from error
