import io
import os
import shlex
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from revformers.cli.recipe_command import RecipeCommand, read_command
from revformers.cli.termination import raised_on_termination
from revformers.errors import UserError
from revformers.training.console import command_console


@dataclass(frozen=True)
class Section:
    """A section."""

    steps: int = 3
    """How many steps."""

    name: str = "one"
    """What it is called."""


@dataclass(frozen=True)
class Example:
    """A recipe."""

    section: Section = field(default_factory=Section)
    """The section."""


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "a recipe.yaml"
    file.write_text("section: {steps: 7}\n")
    return str(file)


def read(*arguments):
    return read_command("train", arguments, Example(), "What the command does.", "recipes/example.yaml")


def test_options_override_the_recipe_and_switches_are_none_of_its_fields(recipe):
    command = read(recipe, "--section.name", "other", "--overwrite")
    assert command.recipe == Example(Section(7, "other"))
    assert (command.resume, command.overwrite) == (False, True)
    assert read(recipe, "--resume").resume


def test_a_stopped_run_says_the_words_that_resume_it(recipe):
    command = read(recipe, "--section.name", "of two words", "--overwrite")
    assert command.resume_words == f"revformers train '{recipe}' --section.name 'of two words' --resume"
    shown = io.StringIO()
    result = SimpleNamespace(step=5, directory=Path("runs/one"), signal=15)
    assert command.stopped(result, Console(file=shown, width=1000)) == 128 + 15
    assert shown.getvalue() == (
        f"Stopped at step 5 with a checkpoint in runs/one.\nTo continue:  {command.resume_words}\n"
    )
    unknown = SimpleNamespace(step=5, directory=Path("runs/one"), signal=None)
    assert RecipeCommand(None, False, False, "").stopped(unknown, Console(file=shown)) == 128


LAUNCHED = ["train", "RECIPE", "--section.steps", "3"]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (
            [sys.executable, __file__, "--nproc-per-node", "2", "-m", "revformers.cli.main", *LAUNCHED],
            "test_recipe_command.py --nproc-per-node 2 -m revformers.cli.main train RECIPE --section.steps 3 --resume",
        ),
        (
            ["srun", "-n", "2", "revformers", *LAUNCHED],
            "srun -n 2 revformers train RECIPE --section.steps 3 --resume",
        ),
        (
            ["a", "launcher", "of", "its", "own"],
            "torchrun --nproc-per-node 2 -m revformers.cli.main train RECIPE --section.steps 3 --resume",
        ),
    ],
)
def test_a_run_of_several_processes_is_resumed_with_its_launcher(recipe, monkeypatch, typed, words):
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "host0"}.items():
        monkeypatch.setenv(name, value)
    parent = SimpleNamespace(cmdline=lambda: [recipe if word == "RECIPE" else word for word in typed])
    monkeypatch.setattr("psutil.Process", lambda process: parent)
    command = read(recipe, "--section.steps", "3")
    assert command.resume_words == words.replace("RECIPE", shlex.quote(recipe))


def test_only_the_main_process_prints(monkeypatch):
    assert not command_console().quiet
    monkeypatch.setenv("RANK", "1")
    assert command_console().quiet


def test_an_interruption_says_what_was_saved(tmp_path):
    def interrupt(recipe, *, resume, overwrite, console):
        raise KeyboardInterrupt

    shown = io.StringIO()
    command = RecipeCommand(SimpleNamespace(output=tmp_path), False, False, "the words")
    with pytest.raises(SystemExit) as ended:
        command.run(interrupt, Console(file=shown, width=1000))
    assert ended.value.code == 130
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "checksums.json").touch()
    with pytest.raises(SystemExit) as ended:
        command.run(interrupt, Console(file=shown, width=1000))
    assert ended.value.code == 130
    last = tmp_path / "checkpoint-4"
    assert shown.getvalue() == (
        "\nInterrupted before there was a checkpoint: nothing of the run, nor of a conversion in it, is kept; give the "
        f"same command again.\n\nInterrupted; {last} is the last checkpoint.\nTo continue:  the words\n"
    )


def test_an_interruption_does_not_take_the_former_run_for_the_new_one(tmp_path):
    def interrupt(recipe, **options):
        stop = KeyboardInterrupt()
        stop.add_note("The former run is still in run.")
        raise stop

    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "checksums.json").touch()
    shown = io.StringIO()
    command = RecipeCommand(SimpleNamespace(output=tmp_path), False, True, "the words")
    with pytest.raises(SystemExit):
        command.run(interrupt, Console(file=shown, width=200))
    assert shown.getvalue() == "\nInterrupted before there was a checkpoint. The former run is still in run.\n"


def test_a_termination_says_how_to_go_on(tmp_path):
    """One before or after the training; `SaveOnSignal` takes those in its steps."""
    exit_codes_of_children = []

    def terminate(recipe, *, resume, overwrite, console):
        child = os.fork()
        os.kill(child or os.getpid(), signal.SIGTERM)  # a child ends as ever
        if not child:
            os._exit(0)
        exit_codes_of_children.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    shown = io.StringIO()
    command = RecipeCommand(SimpleNamespace(output=tmp_path), False, False, "the words")
    last = tmp_path / "checkpoint-4"
    for _ in range(2):
        with pytest.raises(SystemExit) as ended, raised_on_termination():
            command.run(terminate, Console(file=shown, width=1000))
        assert ended.value.code == 143
        last.mkdir(exist_ok=True)
        (last / "checksums.json").touch()
    assert shown.getvalue() == (
        "\nTerminated before there was a checkpoint: nothing of the run, nor of a conversion in it, is kept; give the "
        "same command again.\n"
        f"\nTerminated; {last} is the last checkpoint.\nTo continue:  the words\n"
    )
    assert exit_codes_of_children == [-signal.SIGTERM] * 2
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("arguments", [(), ("--section.steps", "3")])
def test_a_recipe_must_be_named(arguments):
    with pytest.raises(UserError, match=r"Name a recipe first, as in: revformers train recipes/example\.yaml\."):
        read(*arguments)


def test_help_shows_the_values_of_the_recipe(recipe, capsys):
    with pytest.raises(SystemExit) as ended:
        read(recipe, "--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "What the command does." in shown
    assert "How many steps." in shown
    assert "(default: 7)" in shown
    with pytest.raises(SystemExit):
        read("-h")
    assert "(default: 3)" in capsys.readouterr().out
