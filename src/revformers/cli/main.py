"""The entry point of the command line: the commands, and the handling of their errors."""

import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version

from revformers.cli.exit_codes import USER_ERROR, ended
from revformers.cli.help_text import listing, paragraphs
from revformers.cli.quiet import quiet_imports
from revformers.cli.termination import Terminated, raised_on_termination
from revformers.errors import (
    MissingPackageError,
    NotReversibleError,
    RebuildMismatchError,
    StateRangeError,
    UserError,
)
from revformers.streams import readable_streams, watched_output

COMMANDS = {
    "pretrain": ("revformers.cli.pretrain", "train a model from a recipe", "train"),
    "finetune": ("revformers.cli.finetune", "heal a converted model, or fine-tune, from a recipe", "finetune"),
    "verify": ("revformers.cli.verify", "compare rebuilt gradients with stored ones", "cli"),
    "convert": ("revformers.cli.convert", "make a pretrained model reversible with little loss", "train"),
    "plan": ("revformers.cli.plan", "predict memory, largest batch and longest context of training", "cli"),
    "analyze": (
        "revformers.cli.analyze",
        "measure the stability of a model's layers under several dynamics",
        "analyze",
    ),
    "run": ("revformers.cli.run", "run another library's command line on saved reversible models", ""),
}
"""For each command its module, which has ``run(arguments) -> exit code``, its purpose, and the package's extra that it
needs. A module is imported when its command is called, so that the help does not wait for PyTorch."""

VARIABLES = {
    "REVFORMERS_TRACEBACK=1": "show the traceback of an error",
    "REVFORMERS_CACHE=DIRECTORY": "store prepared data there instead of in ~/.cache/revformers",
}
"""Variables of the environment that all commands follow, and what they are for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of revformers that `argv` names; see `run_command`."""
    return run_command("revformers", "Train language models with reversible dynamics.", COMMANDS, argv)


def run_command(
    program: str, purpose: str, commands: Mapping[str, tuple[str, str, str]], argv: Sequence[str] | None = None
) -> int:
    """Run the command that `argv` names and return the exit code of the process.

    0 is success, 1 a failed check, 2 a mistake that the user can correct, 130 an interruption with Ctrl-C, 141 an
    output whose reader has gone, and 143 SIGTERM.

    Args:
        program: the name of the program.
        purpose: its purpose, in one sentence.
        commands: for each command its module, its purpose and its extra, as in `COMMANDS`.
        argv: the words of the command line after the program's name; by default those of this process.

    """
    readable_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else "--help"
    called = f"{program} {command}" if command in commands else program
    try:
        with watched_output():
            if command in ("-h", "--help"):
                print(_help(program, purpose, commands))
                return 0 if arguments else USER_ERROR
            if command == "--version" and len(arguments) == 1:
                print(f"revformers {version('revformers')}")
                return 0
            if command not in commands:
                close = difflib.get_close_matches(command, commands, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(commands)}."
                print(f"{program} has no command {command!r}; {hint}", file=sys.stderr)
                return USER_ERROR
            quiet_imports()
            with raised_on_termination():
                return import_module(commands[command][0]).run(arguments[1:])
    except SystemExit as stop:  # raised by tyro after --help or a wrong option, and where the output's reader has gone
        return stop.code if isinstance(stop.code, int) else USER_ERROR
    except (KeyboardInterrupt, Terminated) as stop:
        word, code = ended(stop)
        print(f"\n{word}: {command} was stopped before it had anything to save.", file=sys.stderr)
        return code
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        *_, extra = commands.get(command, ("",))
        if not extra or package in ("", *(name.partition(".")[0] for name, _, _ in commands.values())):
            raise
        sentence = f'the package {package} is not installed; run: pip install "revformers[{extra}]".'
        print(f"{called}: {sentence}", file=sys.stderr)
        return USER_ERROR
    except Exception as error:
        return report_mistake(called, error)


def report_mistake(called: str, error: Exception) -> int:
    """Print a mistake that the user can correct as one sentence and return its exit code; raise any other error.

    Args:
        called: the command, as the user called it.
        error: what it raised.

    """
    if not _can_be_put_right(error) or os.environ.get("REVFORMERS_TRACEBACK"):
        raise error
    print(f"{called}: {_sentence(error)}", file=sys.stderr)
    return USER_ERROR


def _can_be_put_right(error: Exception) -> bool:
    """Return whether `error` is caused by the user's input rather than by a bug.

    These are our errors for users, and refusals of the operating system or the hub. A bare ValueError is not among
    them: PyTorch and transformers raise it for their own and for our mistakes, whose traceback must stay visible.
    """
    own = UserError | NotReversibleError | StateRangeError | RebuildMismatchError | MissingPackageError
    return isinstance(error, own | OSError)


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _help(program: str, purpose: str, commands: Mapping[str, tuple[str, str, str]]) -> str:
    return "\n".join(
        [
            f"usage: {program} COMMAND ...",
            "",
            paragraphs(purpose),
            "",
            listing({name: what_for for name, (_, what_for, _) in commands.items()}),
            "",
            paragraphs(f"{program} COMMAND --help shows the options of a command."),
            "",
            "Environment variables:",
            "",
            listing(VARIABLES),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
