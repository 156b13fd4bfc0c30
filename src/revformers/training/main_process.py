"""Work that the main process of a run does while the others wait."""

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from revformers.errors import UserError

Result = TypeVar("Result")


def on_main_process(work: Callable[[], Result]) -> Result:
    """Let the main process do some work while the others wait, and return its result on all.

    Raises:
        Exception: on the main process, the error of the work, whatever its kind.
        SystemExit: with exit code 2 on the other processes, so that they do not wait and the error is printed once.

    """
    outcome: list[Any] = [None, False]
    fault: Exception | None = None
    if PartialState().is_main_process:
        try:
            outcome = [work(), False]
        except Exception as error:
            fault, outcome = error, [None, True]
    result, failed = broadcast_object_list(outcome)
    if fault is not None:
        raise fault
    if failed:
        raise SystemExit(2)
    return result


def refuse_once(sentence: str, kind: type[UserError] = UserError) -> None:
    """Raise UserError, or a kind of it, on the main process, and end the others, on all of which this is called.

    Raises:
        UserError, SystemExit: see `on_main_process`.

    """

    def refuse() -> None:
        raise kind(sentence)

    on_main_process(refuse)
