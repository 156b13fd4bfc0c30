import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from revformers.cli import main as module
from revformers.cli.main import main
from revformers.errors import NotReversibleError, RebuildMismatchError, StateRangeError, UserError
from revformers.training.console import command_console, say


@pytest.fixture
def failing(monkeypatch):
    """Return a function that makes a command ``fail`` raise the given error."""

    def install(error):
        def run(arguments):
            raise error

        monkeypatch.setitem(module.COMMANDS, "fail", ("somewhere", "fails", "train"))
        monkeypatch.setattr(module, "import_module", lambda name: SimpleNamespace(run=run))

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
    two_lines = r"(?m)^([│ ]{6,})\w.*\n\1\w.*"
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


def test_a_termination_of_any_command_has_words_and_the_exit_code_of_one(monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)
    terminate = SimpleNamespace(run=lambda arguments: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(module, "import_module", lambda name: terminate)
    assert main(["plan"]) == 143
    assert capsys.readouterr().err == "\nTerminated: plan was stopped before it had anything to save.\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_commands_are_imported_when_they_are_called():
    code = "import sys, revformers.cli.main; print('transformers.trainer' in sys.modules or 'datasets' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"


@pytest.fixture
def closed_pipe():
    """The writing end of a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no full device")


def program(*words, output, **environment):
    """Run a command in a process whose standard output is `output`."""
    line = [sys.executable, "-m", "revformers.cli.main", *words]
    return subprocess.run(line, stdout=output, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["run", "--help"], []])
def test_a_reader_that_goes_away_ends_a_command_in_silence(words, closed_pipe):
    done = program(*words, output=closed_pipe)
    assert (done.returncode, done.stderr) == (141, "")
    assert program(*words, output=subprocess.PIPE).returncode == (0 if words else 2)


@needs_full
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("words", "name"), [(["--help"], "revformers"), (["run", "--help"], "revformers run")])
def test_a_full_output_is_one_sentence(words, name, unbuffered):
    with FULL.open("w") as full:
        done = program(*words, output=full, PYTHONUNBUFFERED=unbuffered)
    sentence = "Standard output cannot be written: No space left on device."
    assert (done.returncode, done.stderr) == (2, f"{name}: {sentence}\n")


def printing(how):
    """A command that writes a result, and prints by one of the ways of commands."""

    def run(arguments):
        Path("result").write_text("kept")
        how()
        return 0

    return run


def swallowed():
    try:
        print("x", flush=True)
    except OSError as error:
        raise UserError("Something else.") from error


WAYS = {
    "print": lambda: print("x"),
    "at length": lambda: print("x" * 100_000),
    "table": lambda: command_console().print("x"),
    "line": lambda: say(command_console(), "x"),
    "as another error": swallowed,
}


@pytest.fixture(params=WAYS)
def writes(request, tmp_path, monkeypatch):
    """Return a function that runs such a command with the given standard output, and returns its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(module.COMMANDS, "write", ("somewhere", "writes", "train"))
    command = type("Module", (), {"run": printing(WAYS[request.param])})
    monkeypatch.setattr(module, "import_module", lambda name: command)

    def run(output):
        monkeypatch.setattr(sys, "stdout", output)
        return main(["write"])

    return run


def test_every_way_to_print_ends_quietly_with_its_reader(writes, closed_pipe, capsys):
    with open(closed_pipe, "w", closefd=False) as output:
        assert writes(output) == 141
    assert capsys.readouterr().err == ""
    assert Path("result").read_text() == "kept"


@needs_full
def test_every_way_to_print_names_a_full_output(writes, capsys):
    with FULL.open("w") as output:
        assert writes(output) == 2
    assert capsys.readouterr().err == "revformers write: Standard output cannot be written: No space left on device.\n"


def test_a_pipe_of_its_own_that_breaks_is_no_end_of_the_output(failing, capsys):
    failing(BrokenPipeError(32, "Broken pipe"))
    assert main(["fail"]) == 2
    assert "Broken pipe" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("words", [["--help"], ["run", "--help"]])
def test_help_fits_the_terminal(words, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    examples = ("  revformers ", "  accelerate ", "  torchrun ")  # to copy, in one line
    assert [line for line in lines if len(line) > columns and not line.startswith(examples)] == []
