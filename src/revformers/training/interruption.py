"""Ctrl-C as a request: finish the step, save a checkpoint, stop.

The Trainer's own enable_jit_checkpoint does not handle Ctrl-C, waits for seconds, and does not report the signal.
"""

import os
import signal
import threading
from contextlib import ExitStack
from types import FrameType, TracebackType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from revformers.training.launched import is_main

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and the signal that job schedulers send before they end a job."""

REQUESTED = b"\nStopping after this step, with a checkpoint; press Ctrl-C again to stop at once.\n"


class SaveOnSignal(TrainerCallback):
    """Saves a checkpoint and ends training after the first signal; the same signal again has its usual effect.

    Launchers such as torchrun pass SIGTERM on after a Ctrl-C that reached the processes as well: it is the same
    request. All processes of a run stop after the same step, whichever of them received a signal.

    Use it as a context manager around ``Trainer.train``, and give it to the Trainer as a callback. Outside the main
    thread, where Python delivers no signals, it has no effect.

    Attributes:
        received: number of the signal, or None before a signal.

    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._former: dict[int, Any] = {}
        self._exit = ExitStack()
        self._group: Any = None

    def __enter__(self) -> "SaveOnSignal":
        if threading.current_thread() is threading.main_thread():
            with ExitStack() as stack:  # a signal may come, and raise, between any two of these lines
                for number in SIGNALS:
                    self._former[number] = signal.getsignal(number) or signal.SIG_DFL  # None if Python did not set it
                    stack.callback(self._restore, number)
                    signal.signal(number, self._receive)
                self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exit.close()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None and number == signal.SIGINT and is_main():
            os.write(2, REQUESTED)  # a handler may interrupt print
        self.received = number
        self._restore(number)

    def _restore(self, number: int) -> None:
        former = self._former.pop(number, None)
        if former is not None:  # otherwise a signal restored it
            signal.signal(number, former)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open a way for the processes of the run to agree, without a device that would have to wait."""
        if args.world_size > 1 and torch.distributed.is_initialized():
            self._group = torch.distributed.new_group(backend="gloo")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Make the Trainer save and stop after a signal; a log here would cut the mean loss of an interval in two."""
        received = self.received
        if self._group is not None:
            shared = torch.tensor(received or 0)
            torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX, self._group)
            received = int(shared) or None
        # Not `self.received`: a signal that arrives while the processes agree is shared after the next step.
        if received is not None:
            self.received = received
            control.should_save = True
            control.should_training_stop = True
