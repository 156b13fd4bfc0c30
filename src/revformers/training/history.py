"""The loss curve of a run, over steps and over seconds."""

import time
from typing import Any

from transformers import TrainerCallback, TrainerState

KEPT = ("step", "seconds", "loss", "eval_loss", "learning_rate", "grad_norm")


class Clock(TrainerCallback):
    """Adds the seconds of training to every entry of the Trainer's log, across interruptions and resumptions.

    The Trainer stores its log in every checkpoint, and the clock continues from the last entry.
    """

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Set the clock to the seconds of a resumed log, otherwise to 0."""
        spent = max((entry.get("seconds", 0.0) for entry in state.log_history), default=0.0)
        self._started = time.perf_counter() - spent

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Add the time to the newest entry."""
        state.log_history[-1]["seconds"] = round(self.seconds, 3)

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return time.perf_counter() - self._started


def loss_curve(state: TrainerState) -> list[dict[str, float]]:
    """Return the entries of the Trainer's log that hold a training or a validation loss."""
    return [
        {name: entry[name] for name in KEPT if name in entry}
        for entry in state.log_history
        if "loss" in entry or "eval_loss" in entry
    ]
