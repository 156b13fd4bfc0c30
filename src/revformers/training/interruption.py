"""Ctrl-C as a request: finish the step, save a checkpoint, stop.

The Trainer's own enable_jit_checkpoint knows no Ctrl-C, waits for seconds first, and does not say that a signal came.
"""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what job schedulers send before they take a machine away."""


class SaveOnSignal(TrainerCallback):
    """Saves a checkpoint and ends training after the first signal; a second signal acts as it always did.

    Use it as a context manager around ``Trainer.train``, and give it to the Trainer as a callback. Outside the main
    thread, where Python hands out no signals, it does nothing.

    Attributes:
        received: number of the signal, None as long as none has come.

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
        """Have the Trainer log, save and stop once a signal has come."""
        if self.received is not None:
            control.should_log = True
            control.should_save = True
            control.should_training_stop = True
