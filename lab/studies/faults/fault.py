"""A fault, the scenario that causes it, and what is seen of it."""

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Result = Literal["refused", "right", "warned", "wrong", "traceback", "not run"]
"""Refused: an error in a sentence. Right: the same numbers as without the fault, or as with stored activations. Warned:
right as far as it goes, with a sentence on the rest. Wrong: other numbers, or a failure without a sentence. Traceback:
a command ended in one. Not run: this machine cannot cause the fault."""

ACCEPTABLE: tuple[Result, ...] = ("refused", "right", "warned", "not run")


@dataclass(frozen=True)
class Outcome:
    """What is seen of a fault.

    Attributes:
        result: whether it is right or refused.
        seen: the type of the exception or the exit code of the command; what was compared if it is right.
        sentence: the first sentence of the message; empty if there is none.

    """

    result: Result
    seen: str
    sentence: str = ""


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


def seen_of(error: BaseException, folder: Path | None = None) -> Outcome:
    """Return the outcome of a fault that an exception refused."""
    return Outcome("refused", type(error).__name__, first_sentence(str(error), folder))
