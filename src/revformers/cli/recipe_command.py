"""What commands with a RECIPE share: their help, reading RECIPE and its options, and a stopped run."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Generic, NoReturn, TypeVar

import tyro

from revformers.errors import UserError
from revformers.training.recipe_file import read_recipe

if TYPE_CHECKING:
    from rich.console import Console

    from revformers.training.trainer_run import RunResult

SWITCHES = ("--resume", "--overwrite")

AnyRecipe = TypeVar("AnyRecipe")


@dataclass(frozen=True)
class RecipeOptions(Generic[AnyRecipe]):
    """What the help of a command shows."""

    recipe: Annotated[tyro.conf.FlagConversionOff[AnyRecipe], tyro.conf.arg(name="")]

    resume: bool = False
    """Continue the run that the run directory holds, from its last checkpoint."""

    overwrite: bool = False
    """Discard the run that the run directory holds."""


@dataclass(frozen=True)
class RecipeCommand(Generic[AnyRecipe]):
    """A command that was read.

    Attributes:
        recipe: with the options in it.
        resume: whether to continue the run that is there.
        overwrite: whether to discard it.
        resume_words: the command line that continues the run.

    """

    recipe: AnyRecipe
    resume: bool
    overwrite: bool
    resume_words: str

    def stopped(self, result: "RunResult", console: "Console") -> int:
        """Say how a run that a signal ended goes on, and return the exit code."""
        from revformers.console import say

        say(console, f"Stopped at step {result.step} with a checkpoint in {result.directory}.")
        say(console, f"To go on:  {self.resume_words}")
        return 128 + (result.signal or 0)


def read_command(
    name: str, arguments: Sequence[str], default: AnyRecipe, description: str, example: str
) -> RecipeCommand[AnyRecipe]:
    """Return the command that `arguments` spell; --help prints the options and ends the process.

    Args:
        name: the command.
        arguments: the words after it.
        default: a recipe of the command's kind.
        description: what the help begins with.
        example: a recipe that the command could be given.

    Raises:
        FileNotFoundError: for a recipe that is not there.
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
    words = shlex.join(["revformers", name, path, *overrides, "--resume"])
    return RecipeCommand(read_recipe(default, path, overrides), resume, overwrite, words)


def show_help(command: str, kind: Any, options: Any, description: str | None = None) -> NoReturn:
    """Print the help of `command`, whose `options` are a dataclass of this kind, and end the process."""
    tyro.cli(
        kind,
        prog=command,
        description=description,
        default=options,
        args=["--help"],
        use_underscores=True,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    raise AssertionError("--help ends the process")
