import io
import time

import pytest
from rich.console import Console
from rich.rule import Rule

from revformers.training import console as module
from revformers.training.console import command_console, progress_bar, say, signs_of_life


def test_a_line_is_printed_as_it_is():
    output = io.StringIO()
    say(Console(file=output, width=10, force_terminal=True), "[bold] 12 words that do not fit")
    assert output.getvalue() == "[bold] 12 words that do not fit\n"


def test_a_bar_is_shown_in_a_terminal_alone():
    for terminal in (True, False):
        output = io.StringIO()
        bar = progress_bar(Console(file=output, force_terminal=terminal, width=80), "step")
        with bar:
            bar.add_task("", total=3, completed=1)
        assert ("1/3" in output.getvalue()) is terminal
        assert terminal or not output.getvalue()


def test_brackets_in_names_and_messages_are_shown(capsys):
    console = command_console()
    console.print("runs/[lora]/model :smile: [/lora]")
    console.print(Rule("[lora]"))
    shown = capsys.readouterr().out
    assert "runs/[lora]/model :smile: [/lora]" in shown
    assert "[lora] ─" in shown
    bar = io.StringIO()
    with progress_bar(Console(file=bar, force_terminal=True, width=80), "step") as progress:
        progress.add_task("[lora]", total=1)
    assert "[lora]" in bar.getvalue()


def test_long_work_says_once_a_minute_that_it_goes_on(monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.05)
    output = io.StringIO()
    with signs_of_life(Console(file=output), "evaluating"):
        time.sleep(0.3)
    lines = output.getvalue().splitlines()
    assert 2 <= len(lines) <= 6
    assert set(lines) == {"evaluating: 0:00:00 so far"}
    time.sleep(0.1)
    assert output.getvalue().splitlines() == lines
    output = io.StringIO()
    with signs_of_life(Console(file=output, force_terminal=True), "evaluating"):
        time.sleep(0.1)
    assert not output.getvalue()


def test_lines_reach_a_file_at_once(tmp_path):
    with (tmp_path / "log").open("w") as file:
        say(Console(file=file), "a line")
        assert (tmp_path / "log").read_text() == "a line\n"


def test_signs_of_life_leave_a_failing_output_to_the_work(monkeypatch, capsys):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.01)

    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("sys.stdout", Broken())
    console = command_console()
    with signs_of_life(console, "evaluating"):
        time.sleep(0.1)
    with pytest.raises(BrokenPipeError):
        say(console, "the result")
    assert capsys.readouterr().err == ""
