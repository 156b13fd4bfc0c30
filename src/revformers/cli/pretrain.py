"""``revformers pretrain RECIPE [--section.field value]``."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from revformers.training.errors import RecipeError
from revformers.training.recipe import Recipe, load_recipe

SWITCHES = ("--resume", "--overwrite")


@dataclass(frozen=True)
class PretrainOptions:
    """Train the model that RECIPE, a .yaml file, describes; each option below overrides a field of it.

    Dicts take further names, as in --model.config.hidden_size 512 or --dynamics.options.step_size 0.5.
    """

    recipe: Annotated[tyro.conf.FlagConversionOff[Recipe], tyro.conf.arg(name="")]

    resume: bool = False
    """Continue the run that the run directory holds, from its last checkpoint."""

    overwrite: bool = False
    """Discard the run that the run directory holds."""


def run(arguments: Sequence[str]) -> int:
    """Train as `arguments` say and return the exit code.

    Raises:
        FileNotFoundError: for a recipe or a text file that is not there.
        RecipeError: for whatever else the user can put right.

    """
    path = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if "--help" in arguments or "-h" in arguments:
        shown = load_recipe(path) if path else Recipe()
        tyro.cli(
            PretrainOptions,
            prog=f"revformers pretrain {path or 'RECIPE'}",
            default=PretrainOptions(shown),
            args=["--help"],
            use_underscores=True,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    if path is None:
        raise RecipeError("Name a recipe first, as in: revformers pretrain recipes/quickstart.yaml.")
    overrides = [argument for argument in arguments[1:] if argument not in SWITCHES]
    recipe = load_recipe(path, overrides)
    resume, overwrite = (switch in arguments for switch in SWITCHES)

    # imported here, so that a misspelt recipe is reported at once
    from rich.console import Console
    from rich.rule import Rule

    from revformers.cli.quiet import quiet_libraries
    from revformers.training.pretrain import pretrain

    quiet_libraries()
    console = Console()
    result = pretrain(recipe, resume=resume, overwrite=overwrite, console=console)
    if not result.finished:
        command = shlex.join(["revformers", "pretrain", path, *overrides, "--resume"])
        console.print(f"Stopped at step {result.step} with a checkpoint in {result.directory}.", highlight=False)
        console.print(f"To go on:  {command}", highlight=False, markup=False, soft_wrap=True)
        return 128 + (result.signal or 0)
    metrics = result.metrics
    console.print(
        f"Finished {metrics['steps']} steps in {metrics['seconds']:,.1f} s: validation loss "
        f"{metrics['validation_loss']:.4f} (perplexity {metrics['validation_perplexity']:.1f}), "
        f"{metrics['tokens_per_second']:,.0f} tokens/s.",
        highlight=False,
        soft_wrap=True,
    )
    sample = result.directory / "sample.txt"
    if sample.is_file():
        console.print(Rule(str(sample)), sample.read_text(encoding="utf-8"), highlight=False, markup=False)
    console.print(
        f'Model:  revformers.from_pretrained("{result.directory / "model"}")',
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return 0
