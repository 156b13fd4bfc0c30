"""Ctrl-C as a request: finish the step, save a checkpoint, stop.

The Trainer's own enable_jit_checkpoint does not handle Ctrl-C, waits for seconds, and does not report the signal.
"""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and the signal that job schedulers send before they end a job."""


class SaveOnSignal(TrainerCallback):
    """Saves a checkpoint and ends training after the first signal; a second signal has its usual effect.

    Use it as a context manager around ``Trainer.train``, and give it to the Trainer as a callback. Outside the main
    thread, where Python delivers no signals, it has no effect.

    Attributes:
        received: number of the signal, or None before a signal.

    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "SaveOnSignal":
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        while self._former:
            number, handler = self._former.popitem()
            signal.signal(number, handler)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Make the Trainer log, save and stop after a signal."""
        if self.received is not None:
            control.should_log = True
            control.should_save = True
            control.should_training_stop = True
