"""``python -m lab bench depth|batch|length|budget RECIPE [--field value]``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lab.bench.recipe import BenchRecipe
from revformers.cli.help_text import listing
from revformers.cli.options import show_help
from revformers.errors import UserError
from revformers.files import check_place
from revformers.training.recipe_file import read_recipe, split_options

STUDIES = {
    "depth": "over numbers of layers: memory, step time, and the largest batch within a memory",
    "batch": "over batch sizes: the same",
    "length": "over sequence lengths: the same, with the longest sequence instead of the largest batch",
    "budget": "over budgets of the arms that spend one: step time at equal peak memory",
}
PLOTS = (".svg", ".png", ".pdf")


@dataclass(frozen=True)
class BenchOptions:
    """Measure the arms of RECIPE, a .yaml file; each option below overrides a field of it.

    The same command continues a study that was interrupted.

    Attributes:
        out: JSON file for the result, written after every measurement; default: lab/results/STUDY-RECIPE.json.
        plot: File for a plot of the result, .svg, .png or .pdf.
        overwrite: Discard the study in the file.

    """

    recipe: Annotated[tyro.conf.FlagConversionOff[BenchRecipe], tyro.conf.arg(name="")]

    out: Path | None = None
    plot: Path | None = None
    overwrite: bool = False


def run(arguments: Sequence[str]) -> int:
    """Run one study or continue it, print its tables, and return 0.

    Raises:
        FileNotFoundError: if the recipe does not exist.
        NotReversibleError: if the network cannot have the dynamics.
        UserError: if a recipe or an option cannot be measured, or if the file holds another study.

    """
    names = [word for word in arguments[:2] if not word.startswith("-")]
    study, path, *_ = [*names, None, None]
    if study is None and {"-h", "--help"} & set(arguments):
        print(_usage())
        return 0
    if study not in STUDIES:
        given = "" if study is None else f", not {study!r}"
        raise UserError(f"Name a study first, one of {', '.join(STUDIES)}{given}.")
    if {"-h", "--help"} & set(arguments):
        shown = read_recipe(BenchRecipe(), path) if path else BenchRecipe()
        show_help(f"python -m lab bench {study} {path or 'RECIPE'}", BenchOptions, BenchOptions(shown))
    if path is None:
        raise UserError(f"Name a recipe, as in: python -m lab bench {study} recipes/bench/cpu-time.yaml.")
    options = split_options(arguments[2:])
    overwrite = options.pop("overwrite", None) is not None
    out = Path(str(options.pop("out", None) or Path("lab/results", f"{study}-{Path(path).stem}.json")))
    plot = Path(str(options.pop("plot"))) if "plot" in options else None
    check_place(out)
    if plot is not None:
        check_place(plot)
    if plot is not None and plot.suffix not in PLOTS:
        raise UserError(f"--plot takes a file that ends in {', '.join(PLOTS)}, not {str(plot)!r}.")

    # imported here, so that a misspelt option is reported without delay
    from lab.bench.study import Study, settings
    from lab.bench.study_axis import AXES
    from lab.bench.study_file import StudyFile
    from lab.bench.study_plot import save_plot
    from lab.bench.study_tables import study_tables
    from revformers.training.console import command_console, say, signs_of_life

    console = command_console()
    recipe, axis = read_recipe(BenchRecipe(), path, options), AXES[study]
    file = StudyFile(out, settings(axis, recipe), ["bench", *arguments], overwrite=overwrite)
    with signs_of_life(console, "measuring"):
        result = Study(axis, recipe, file, lambda line: say(console, line)).run()
    if plot is not None:
        save_plot(result, plot)
    console.print(study_tables(result))
    say(console, f"Written to {out}.")
    if plot is not None:
        say(console, f"Plotted in {plot}.")
    return 0


def _usage() -> str:
    return "\n".join(
        [
            "usage: python -m lab bench STUDY RECIPE ...",
            "",
            listing(STUDIES),
            "",
            "python -m lab bench STUDY --help shows the options.",
        ]
    )
