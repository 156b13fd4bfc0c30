"""A fault, the scenario that causes it, and what is seen of it."""

import re
import socket
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import revformers

Result = Literal["refused", "right", "warned", "wrong", "traceback", "not run"]
"""Refused: an error of revformers, in a sentence. Right: the same numbers as without the fault, or as with stored
activations. Warned: right as far as it goes, with a sentence on the rest. Wrong: other numbers, no end, or an end
without a sentence of revformers. Traceback: a command ended in one. Not run: this machine or this policy cannot have
the fault."""

ACCEPTABLE: tuple[Result, ...] = ("refused", "right", "warned", "not run")


@dataclass(frozen=True)
class Outcome:
    """What is seen of a fault.

    Attributes:
        result: whether it is right or refused.
        seen: the type of the exception or the exit code of the command; what was compared if it is right.
        sentence: the first sentence of the message; empty if there is none.
        policies: what is seen under each activation policy, where there are several.

    """

    result: Result
    seen: str
    sentence: str = ""
    policies: Mapping[str, "Outcome"] = field(default_factory=dict)


Scenario = Callable[[Path], Outcome]
"""Causes a fault, with an empty folder to work in, and returns what is seen."""


@dataclass(frozen=True)
class Fault:
    """A row of the table.

    Attributes:
        words: the fault.
        remedy: what a user does about it.
        scenario: causes it.

    """

    words: str
    remedy: str
    scenario: Scenario


_OF_THIS_RUN = {
    r"\bprocess \d+": "process NUMBER",
    rf"\bon {re.escape(socket.gethostname())}\b": "on HOST",
    r"\[127\.0\.0\.1\]:\d+": "ADDRESS",
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d": "TIME",
}
"""What differs from run to run in a message, and what is written instead."""


def first_sentence(message: str, folder: Path | None = None) -> str:
    """Return the first sentence of a message, in one line, up to a semicolon and without the path of the folder."""
    if folder is not None:
        message = message.replace(f"{folder}/", "").replace(str(folder), ".")
    words = " ".join(message.split())
    for pattern, instead in _OF_THIS_RUN.items():
        words = re.sub(pattern, instead, words)
    ends = (end.start() for end in re.finditer(r"(?<=[.!?]) (?=[A-Z])|; ", words))
    end = next((end for end in ends if words.count("(", 0, end) == words.count(")", 0, end)), len(words))
    return words[:end].rstrip(".;:")


def raised_by_revformers(error: BaseException) -> bool:
    """Whether an exception is of a class of revformers, or was raised by its code rather than by a library's."""
    package = Path(revformers.__file__).parent
    frames = traceback.extract_tb(error.__traceback__)
    return type(error).__module__.startswith("revformers.") or (
        bool(frames) and Path(frames[-1].filename).is_relative_to(package)
    )


def seen_of(error: BaseException) -> Outcome:
    """Return the outcome of a fault that ended in an exception: refused if revformers raised it."""
    result: Result = "refused" if raised_by_revformers(error) else "wrong"
    return Outcome(result, type(error).__name__, first_sentence(str(error)))
