"""Code shared by commands with a RECIPE: their help, reading RECIPE and its options, and a stopped run."""

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

import tyro

from revformers.cli.exit_codes import after_signal, ended
from revformers.cli.options import show_help
from revformers.cli.termination import Terminated
from revformers.errors import UserError
from revformers.training.launched import launched_processes
from revformers.training.recipe_file import read_recipe

if TYPE_CHECKING:
    from rich.console import Console

    from revformers.training.trainer_run import RunResult

SWITCHES = ("--resume", "--overwrite")

AnyRecipe = TypeVar("AnyRecipe")


@dataclass(frozen=True)
class RecipeOptions(Generic[AnyRecipe]):
    """The options that the help of a command shows.

    Attributes:
        resume: Continue the run that the run directory holds, from its last checkpoint.
        overwrite: Discard the run that the run directory holds.

    """

    recipe: Annotated[tyro.conf.FlagConversionOff[AnyRecipe], tyro.conf.arg(name="")]

    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class RecipeCommand(Generic[AnyRecipe]):
    """A parsed command.

    Attributes:
        recipe: the recipe, changed by the options.
        resume: whether to continue the run in the run directory.
        overwrite: whether to discard that run.
        resume_words: the command line that continues the run.

    """

    recipe: AnyRecipe
    resume: bool
    overwrite: bool
    resume_words: str

    def run(self, train: Callable[..., "RunResult"], console: "Console") -> "RunResult":
        """Train, and return the result; after Ctrl-C or SIGTERM end the process with words on what was saved.

        Those in the steps of the training end it with a checkpoint; these come before and after them.
        """
        from revformers.training.console import say
        from revformers.training.run_directory import RunDirectory

        try:
            return train(self.recipe, resume=self.resume, overwrite=self.overwrite, console=console)
        except (KeyboardInterrupt, Terminated) as stop:
            recipe: Any = self.recipe
            checkpoints = RunDirectory(recipe.output).checkpoints.complete()
            word, code = ended(stop)
            if notes := getattr(stop, "__notes__", ()):  # of a run directory with a former run
                say(console, f"\n{word} before there was a checkpoint. {notes[0]}")
            elif checkpoints:
                say(console, f"\n{word}; {checkpoints[-1]} is the last checkpoint.")
                say(console, f"To continue:  {self.resume_words}")
            else:
                kept = "nothing of the run, nor of a conversion in it, is kept"
                say(console, f"\n{word} before there was a checkpoint: {kept}; give the same command again.")
            raise SystemExit(code) from None

    def stopped(self, result: "RunResult", console: "Console") -> int:
        """Print how to continue a run that a signal ended, and return the exit code."""
        from revformers.training.console import say

        say(console, f"Stopped at step {result.step} with a checkpoint in {result.directory}.")
        say(console, f"To continue:  {self.resume_words}")
        return after_signal(result.signal or 0)


def read_command(
    name: str, arguments: Sequence[str], default: AnyRecipe, description: str, example: str
) -> RecipeCommand[AnyRecipe]:
    """Return the command in `arguments`; --help prints the options and ends the process.

    Args:
        name: the command.
        arguments: the words after it.
        default: the default recipe of the command.
        description: the beginning of the help.
        example: the path of an example recipe, for messages.

    Raises:
        FileNotFoundError: for a missing recipe.
        UserError: for a recipe or an option that cannot be read.

    """
    path = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if "--help" in arguments or "-h" in arguments:
        shown = read_recipe(default, path) if path else default
        kind: Any = RecipeOptions[type(shown)]  # type: ignore[misc]
        show_help(f"revformers {name} {path or 'RECIPE'}", kind, RecipeOptions(shown), description)
    if path is None:
        raise UserError(f"Name a recipe first, as in: revformers {name} {example}.")
    overrides = [argument for argument in arguments[1:] if argument not in SWITCHES]
    resume, overwrite = (switch in arguments for switch in SWITCHES)
    words = shlex.join([*_program([name, *arguments]), name, path, *overrides, "--resume"])
    return RecipeCommand(read_recipe(default, path, overrides), resume, overwrite, words)


def _program(words: list[str]) -> list[str]:
    """Return what the user typed before `words`: this program, or a launcher of several processes with its options."""
    if launched_processes() == 1:
        return ["revformers"]
    import psutil

    typed = psutil.Process(os.getppid()).cmdline()
    if typed[-len(words) :] != words:  # another launcher than torchrun and accelerate
        return ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", "1"), "-m", "revformers.cli.main"]
    typed = typed[: -len(words)]
    if Path(typed[1]).is_file():  # the interpreter precedes the launcher's script
        typed = typed[1:]
    return [Path(typed[0]).name, *typed[1:]]
