import re
import subprocess
import sys

import pytest

from revformers.cli import main as module
from revformers.cli.main import main
from revformers.errors import NotReversibleError, RebuildMismatchError, StateRangeError, UserError


@pytest.fixture
def failing(monkeypatch):
    """Return a function that makes a command ``fail`` raise the given error."""

    def install(error):
        def run(arguments):
            raise error

        monkeypatch.setitem(module.COMMANDS, "fail", ("somewhere", "fails", "train"))
        monkeypatch.setattr(module.importlib, "import_module", lambda name: type("Module", (), {"run": run}))

    return install


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown and purpose in shown for name, (_, purpose, _) in module.COMMANDS.items())


@pytest.mark.parametrize("command", module.COMMANDS)
def test_every_command_has_help(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"usage: revformers {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", [name for name in module.COMMANDS if name != "run"])
def test_where_there_is_room_a_description_is_one_line(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")
    assert main([command, "--help"]) == 0
    two_lines = r"(?m)^[│ ]{6,}\w.*\n[│ ]{6,}\w.*"
    shown = capsys.readouterr().out
    assert re.findall(two_lines, shown) == []
    first = next(line for line in shown.splitlines() if re.match(r"[│ ]{6,}\w", line))
    assert re.search(two_lines, shown.replace(first, f"{first}\n{first}"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "pretrain"),
        (["pretain"], "no command 'pretain'; did you mean 'pretrain'?"),
        (["zip"], "no command 'zip'; it has pretrain, finetune"),
    ],
)
def test_no_command_and_an_unknown_one_are_user_errors(arguments, said, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.out + captured.err


@pytest.mark.parametrize(
    "error",
    [
        UserError("One\nsentence."),
        FileNotFoundError("One sentence."),
        NotReversibleError("One sentence."),
        StateRangeError("One sentence."),
        RebuildMismatchError("One sentence."),
    ],
)
def test_what_the_user_can_put_right_is_one_sentence(failing, error, capsys, monkeypatch):
    monkeypatch.delenv("REVFORMERS_TRACEBACK", raising=False)
    failing(error)
    assert main(["fail"]) == 2
    assert capsys.readouterr().err == "revformers fail: One sentence.\n"


def test_a_missing_package_is_one_sentence_that_names_the_extra(failing, capsys):
    failing(ModuleNotFoundError("No module named 'some.part'", name="some.part"))
    assert main(["fail"]) == 2
    sentence = 'the package some is not installed; run: pip install "revformers[train]".'
    assert capsys.readouterr().err == f"revformers fail: {sentence}\n"


@pytest.mark.parametrize("name", ["revformers.nowhere", None])
def test_a_missing_module_of_our_own_keeps_its_traceback(failing, name):
    failing(ModuleNotFoundError("No module", name=name))
    with pytest.raises(ModuleNotFoundError):
        main(["fail"])


@pytest.mark.parametrize("error", [ValueError("a bug"), TypeError("a bug"), RuntimeError("a bug"), KeyError("a bug")])
def test_mistakes_in_a_program_keep_their_traceback(failing, error):
    failing(error)
    with pytest.raises(type(error)):
        main(["fail"])


def test_a_traceback_can_be_asked_for(failing, monkeypatch):
    failing(UserError("One sentence."))
    monkeypatch.setenv("REVFORMERS_TRACEBACK", "1")
    with pytest.raises(UserError):
        main(["fail"])


def test_an_interruption_has_the_exit_code_of_one(failing, capsys):
    failing(KeyboardInterrupt())
    assert main(["fail"]) == 130
    assert "before it had anything to save" in capsys.readouterr().err


def test_the_commands_are_imported_when_they_are_called():
    code = "import sys, revformers.cli.main; print('transformers.trainer' in sys.modules or 'datasets' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"
