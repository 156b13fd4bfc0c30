"""The entry point of the command line: which commands there are, and what their errors become."""

import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "pretrain": ("revformers.cli.pretrain", "train a model from a recipe"),
    "finetune": ("revformers.cli.finetune", "heal a converted model, or fine-tune, from a recipe"),
    "verify": ("revformers.cli.verify", "compare rebuilt gradients with stored ones"),
    "convert": ("revformers.cli.convert", "make a pretrained model reversible with little loss"),
    "evaluate": ("revformers.cli.evaluate", "evaluate a model on standard tasks, beside another one"),
    "compare": ("revformers.cli.compare", "compare every dynamics, and storing, checkpointing and rebuilding"),
    "plan": ("revformers.cli.plan", "say what training takes: memory, largest batch, longest context"),
    "report": ("revformers.cli.report", "write a run and its comparison as one HTML page"),
    "run": ("revformers.cli.run", "run another library's command line on saved reversible models"),
    "bench": ("revformers.cli.bench", "measure memory, step time and the largest batch of every way to train"),
}
"""For each command its module, which has ``run(arguments) -> exit code``, and what it is for. The modules are imported
when they are called, so that the help does not wait for PyTorch."""

USER_ERROR = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` names and return the exit code of the process.

    0 is success, 1 a check that failed, 2 something that the user can put right, 130 an interruption with Ctrl-C.

    Args:
        argv: the words of the command line after the program's name; left out, those of this process.

    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0 if arguments else USER_ERROR
    command, *rest = arguments
    if command not in COMMANDS:
        print(f"revformers has no command {command!r}; it has {', '.join(COMMANDS)}.", file=sys.stderr)
        return USER_ERROR
    module = importlib.import_module(COMMANDS[command][0])
    try:
        return module.run(rest)
    except SystemExit as stop:  # what tyro ends with after --help, or after an option it cannot read
        return stop.code if isinstance(stop.code, int) else USER_ERROR
    except KeyboardInterrupt:
        print(f"\nInterrupted: {command} was stopped before there was anything to save.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if not _can_be_put_right(error) or os.environ.get("REVFORMERS_TRACEBACK"):
            raise
        print(f"revformers {command}: {_sentence(error)}", file=sys.stderr)
        return USER_ERROR


def _can_be_put_right(error: Exception) -> bool:
    """Say whether `error` is about what the user gave, rather than a mistake in a program.

    Only errors that were raised for the user count, and what the operating system or the hub refuse. A bare ValueError
    does not: PyTorch and transformers raise it for their own and for our mistakes, whose traceback must stay visible.
    """
    from revformers.errors import MissingPackageError, NotReversibleError, RebuildMismatchError, StateRangeError
    from revformers.training.errors import RecipeError

    own = RecipeError | NotReversibleError | StateRangeError | RebuildMismatchError | MissingPackageError
    return isinstance(error, own | OSError)


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _help() -> str:
    lines = [f"  {name:<10} {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: revformers COMMAND ...",
            "",
            "Train language models with reversible dynamics.",
            "",
            *lines,
            "",
            "revformers COMMAND --help shows the options of a command.",
            "REVFORMERS_TRACEBACK=1 shows where an error arose; REVFORMERS_CACHE=DIRECTORY keeps prepared data there",
            "instead of in ~/.cache/revformers.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
