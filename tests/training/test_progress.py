import io

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from revformers.training.history import Clock
from revformers.training.progress import ShowProgress


class Ticking(Clock):
    """A clock that the test moves, so that a busy machine does not."""

    seconds = 0.0


def shown(terminal, tmp_path, tokens_per_step=64):
    """Return what four steps of a resumed run show, whose Trainer counts 32 tokens a step."""
    output = io.StringIO()
    clock = Ticking()
    progress = ShowProgress(Console(file=output, force_terminal=terminal, width=120), clock, tokens_per_step)
    arguments, control = TrainingArguments(str(tmp_path), use_cpu=True), TrainerControl()
    state = TrainerState(global_step=10, max_steps=14, is_world_process_zero=True)
    for event in (clock.on_train_begin, progress.on_train_begin):
        event(arguments, state, control)
    for step in range(11, 15):
        state.global_step = step
        state.num_input_tokens_seen += 32
        clock.seconds += 1.0
        progress.on_step_end(arguments, state, control)
        progress.on_log(arguments, state, control, logs={"loss": 3.25, "learning_rate": 1.0})
    progress.on_log(arguments, state, control, logs={"eval_loss": 2.5})
    progress.on_log(arguments, state, control, logs={"train_runtime": 4.0})
    progress.on_train_end(arguments, state, control)
    return output.getvalue()


def test_outside_a_terminal_there_is_a_plain_line_for_every_loss(tmp_path):
    lines = shown(False, tmp_path).splitlines()
    assert lines[1] == "step 12/14  loss 3.2500  64 tokens/s  0:00:02 left"
    assert lines[-1] == "step 14: validation loss 2.5000"
    assert len(lines) == 5
    assert "\x1b" not in "".join(lines)


def test_the_trainer_counts_tokens_where_steps_differ(tmp_path):
    assert "32 tokens/s" in shown(False, tmp_path, None).splitlines()[1]


def test_in_a_terminal_there_is_a_bar(tmp_path):
    text = shown(True, tmp_path)
    assert "\x1b" in text
    assert "14/14" in text
    assert "loss 3.2500" in text
    assert "64 tokens/s" in text
    assert "validation loss 2.5000" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_other_processes_are_silent(tmp_path, terminal):
    output = io.StringIO()
    progress = ShowProgress(Console(file=output, force_terminal=terminal), Clock(), 64)
    arguments, control = TrainingArguments(str(tmp_path), use_cpu=True), TrainerControl()
    state = TrainerState(global_step=1, max_steps=4, is_world_process_zero=False)
    progress.on_train_begin(arguments, state, control)
    progress.on_step_end(arguments, state, control)
    progress.on_log(arguments, state, control, logs={"loss": 3.25})
    assert output.getvalue() == ""


@pytest.mark.parametrize(("logs", "expected"), [(False, [1, 3, 5]), (True, [])])
def test_a_file_gets_a_line_a_minute_between_logs_that_are_far_apart(logs, expected, tmp_path):
    output, clock = io.StringIO(), Ticking()
    progress = ShowProgress(Console(file=output, width=120), clock, 64)
    arguments, control = TrainingArguments(str(tmp_path), use_cpu=True), TrainerControl(should_log=logs)
    state = TrainerState(global_step=0, max_steps=9, is_world_process_zero=True)
    progress.on_train_begin(arguments, state, control)
    for step, seconds in enumerate((61, 90, 122, 170, 190), start=1):
        state.global_step, clock.seconds = step, seconds
        progress.on_step_end(arguments, state, control)
    assert [int(line.split()[1].partition("/")[0]) for line in output.getvalue().splitlines()] == expected
