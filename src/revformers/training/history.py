"""The loss curve of a run, over steps and over seconds."""

import time
from typing import Any

from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState

KEPT = ("step", "seconds", "loss", "eval_loss", "learning_rate", "grad_norm")


class Clock(TrainerCallback, ExportableState):
    """Adds the seconds of training to every entry of the Trainer's log, across interruptions and resumptions.

    The Trainer stores the state of the clock in every checkpoint, and the clock continues from there.
    """

    def __init__(self) -> None:
        self._started: float | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Set the clock to the seconds of a resumed training, otherwise to 0."""
        callbacks: Any = state.stateful_callbacks
        saved = callbacks.get(type(self).__name__, self.state())
        self._started = time.perf_counter() - saved["attributes"]["seconds"]

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Add the time to the newest entry."""
        state.log_history[-1]["seconds"] = round(self.seconds, 3)

    def state(self) -> dict[str, Any]:
        """Return the seconds, in the form in which the Trainer stores states of callbacks."""
        return {"args": {}, "attributes": {"seconds": self.seconds}}

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return 0.0 if self._started is None else time.perf_counter() - self._started


class LogLastStep(TrainerCallback):
    """Logs the loss of the last step, whatever logging_steps is: the figures of a run contain it."""

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Ask for a log after the last step."""
        if state.global_step >= state.max_steps:
            control.should_log = True


def loss_curve(state: TrainerState) -> list[dict[str, float]]:
    """Return the entries of the Trainer's log that hold a training or a validation loss."""
    return [
        {name: entry[name] for name in KEPT if name in entry}
        for entry in state.log_history
        if "loss" in entry or "eval_loss" in entry
    ]
