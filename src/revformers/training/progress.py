"""The progress display of a training run: a bar in a terminal, plain lines elsewhere.

The Trainer's own ProgressCallback shows no tokens per second, in which activation policies differ, and writes no
readable lines to a log file.
"""

from datetime import timedelta
from typing import Any

from rich.console import Console
from transformers import TrainerCallback, TrainerState

from revformers.training.console import SECONDS_BETWEEN_LINES, progress_bar, say
from revformers.training.history import Clock


class ShowProgress(TrainerCallback):
    """Shows step, loss, tokens per second and the time left.

    Args:
        console: where to show it.
        clock: measures the seconds of training.
        tokens_per_step: tokens of one optimizer step, over all devices; None if steps differ and the Trainer counts
            the tokens (include_num_input_tokens_seen).

    """

    def __init__(self, console: Console, clock: Clock, tokens_per_step: int | None) -> None:
        self._console = console
        self._clock = clock
        self._tokens_per_step = tokens_per_step
        self._loss = ""
        self._first = (0, 0, 0.0)
        self._told = 0.0
        self._bar = progress_bar(console, "step")
        self._task = self._bar.add_task("")

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Start counting at the first step of this process."""
        self._first = (state.global_step, self._tokens(state), self._clock.seconds)
        self._told = self._clock.seconds
        self._bar.reset(self._task, total=state.max_steps, completed=state.global_step)
        if state.is_world_process_zero:
            self._bar.start()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        description = f"{self._loss}{self._speed(state):,.0f} tokens/s"
        self._bar.update(self._task, completed=state.global_step, description=description)
        late = self._clock.seconds - self._told >= SECONDS_BETWEEN_LINES
        if state.is_world_process_zero and late and not control.should_log:
            self._tell(state)  # between two logs that are far apart

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Show a validation loss on a line of its own, a training loss in the bar or, without a terminal, on a line."""
        if not state.is_world_process_zero or not logs:
            return
        if "eval_loss" in logs:
            say(self._console, f"step {state.global_step}: validation loss {logs['eval_loss']:.4f}")
        elif "loss" in logs:
            self._loss = f"loss {logs['loss']:.4f}  "
            self._tell(state)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Stop the bar."""
        self.close()

    def close(self) -> None:
        """Restore the terminal, after an exception too."""
        self._bar.stop()

    def _tell(self, state: TrainerState) -> None:
        """Print a line about the progress, outside a terminal."""
        if not self._console.is_terminal:
            self._told = self._clock.seconds
            step = f"step {state.global_step}/{state.max_steps}"
            left = timedelta(seconds=round(self._seconds_left(state)))
            say(self._console, f"{step}  {self._loss}{self._speed(state):,.0f} tokens/s  {left} left")

    def _tokens(self, state: TrainerState) -> int:
        if self._tokens_per_step is None:
            return int(state.num_input_tokens_seen)
        return int(state.global_step) * self._tokens_per_step

    def _seconds(self) -> float:
        return max(self._clock.seconds - self._first[2], 1e-9)

    def _speed(self, state: TrainerState) -> float:
        return (self._tokens(state) - self._first[1]) / self._seconds()

    def _seconds_left(self, state: TrainerState) -> float:
        steps_per_second = (state.global_step - self._first[0]) / self._seconds()
        return (state.max_steps - state.global_step) / max(steps_per_second, 1e-9)
