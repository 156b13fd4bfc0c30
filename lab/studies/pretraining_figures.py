"""Draws the figures of docs/science/pretraining.md from the committed studies of pretraining.

python -m lab.studies.pretraining_figures
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from lab import REPOSITORY
from lab.bench.study_plot import MARKERS, STYLE
from lab.command import as_command
from lab.docs.markdown import RESULTS, result
from lab.docs.pretraining import ORDINARY, along_training, compared, compared_with_ordinary, is_finished, paired

FOLDER = REPOSITORY / "docs" / "science"

Row = Mapping[str, Any]


def figure_of(study: Row) -> Figure:
    """Return the differences by seed, and the mean difference of the validation losses along the training."""
    losses = compared(study)
    ordinary = losses.get(ORDINARY, {})
    others = (arm for arm in losses if arm != ORDINARY and paired(losses[arm], ordinary))
    arms = sorted(others, key=lambda arm: -mean(losses[arm].values()))
    figure = Figure(figsize=(9.4, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, arm in enumerate(arms):
        differences = paired(losses[arm], ordinary)
        left.plot(differences, [place] * len(differences), MARKERS[place % len(MARKERS)], color=f"C{place}", alpha=0.7)
        left.plot([mean(differences)] * 2, [place - 0.3, place + 0.3], color=f"C{place}")
        along = along_training(study, arm)
        right.plot(list(along), list(along.values()), f"-{MARKERS[place % len(MARKERS)]}", color=f"C{place}", label=arm)
    left.set_yticks(range(len(arms)), arms)
    left.grid(axis="y", visible=False)
    left.set_title("after training: every seed, and the mean")
    right.set_title("along the training: the mean")
    right.set_xlabel("optimizer steps")
    left.axvline(0, color="#888888", linewidth=1)
    if comparison := compared_with_ordinary(study):
        least = comparison.least_difference
        left.axvspan(-least, least, color="#888888", alpha=0.15, linewidth=0)
    right.axhline(0, color="#888888", linewidth=1)
    left.set_xlabel(
        "validation loss over that of the\nordinary network, nats per token;\na mean in grey is not told from zero"
    )
    figure.legend(*right.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def save_figures(folder: Path = FOLDER) -> list[Path]:
    """Write the figure of every committed study that is finished."""
    files = []
    for file in sorted(RESULTS.glob("pretraining-*.json")):
        study = result(file.stem)
        if is_finished(study):
            with matplotlib.rc_context(STYLE):
                files.append(folder / f"{file.stem}.svg")
                figure_of(study).savefig(files[-1], metadata={"Date": None})
    return files


def main() -> None:
    """Write the figures."""
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    for file in save_figures():
        print(file.relative_to(REPOSITORY))


if __name__ == "__main__":
    as_command(main)
