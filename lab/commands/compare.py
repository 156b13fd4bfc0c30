"""``python -m lab compare RECIPE --out DIR``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from revformers.cli.options import read_options
from revformers.files import check_place


@dataclass(frozen=True)
class CompareOptions:
    """Compare every dynamics, and storing, checkpointing and rebuilding, on the network and the text of a recipe.

    Takes a few minutes on two cores with recipes/quickstart.yaml.

    Attributes:
        recipe: The recipe (.yaml).
        out: Directory that comparison.json is written to.
        dynamics_steps: Optimizer steps of each dynamics.
        arm_steps: Optimizer steps of each way to hold activations.
        depths: Numbers of layers at which memory is measured.
        device: Device to measure on, such as cuda.

    """

    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")]
    out: Path = Path("runs/comparison")
    dynamics_steps: int = 16
    arm_steps: int = 10
    depths: tuple[int, ...] = (4, 8, 16, 32, 64)
    device: str = "cpu"


def run(arguments: Sequence[str]) -> int:
    """Measure, print the tables, write comparison.json, and return 0 if all gradients were exact, otherwise 1.

    Raises:
        FileNotFoundError: if the recipe or a text file does not exist.
        UserError: for any other mistake that the user can correct.

    """
    options = read_options(CompareOptions, "python -m lab compare", arguments)
    # imported here, so that the help does not wait for PyTorch
    import datasets

    from lab.bench.comparison import Comparison, ComparisonOptions
    from lab.bench.environment import write_result
    from lab.bench.terminal import comparison_tables
    from revformers.training.console import command_console, say, signs_of_life
    from revformers.training.recipe import load_recipe

    path = options.out / "comparison.json"
    check_place(path)
    console = command_console()
    if not console.is_terminal:
        datasets.disable_progress_bars()
    recipe = load_recipe(options.recipe)
    settings = ComparisonOptions(
        dynamics_steps=options.dynamics_steps,
        arm_steps=options.arm_steps,
        depths=options.depths,
        processes_at_once=1 if options.device.startswith("cuda") else 2,
        device=options.device,
    )
    with signs_of_life(console, "comparing"):
        comparison = Comparison(recipe, settings, lambda line: say(console, f"{line} ...")).run()
    write_result(path, {"recipe_file": Path(options.recipe).name, **comparison}, ["compare", *arguments])
    console.print(comparison_tables(comparison))
    say(console, f"Written to {path}.")
    verified = [row["bit_exact"] for row in comparison["dynamics"] if "bit_exact" in row]
    return 0 if all(verified) and comparison["arms"]["verification"]["bit_exact"] else 1
