"""Draws the figures of docs/science/stability.md from lab/results/stability.json.

python -m lab.studies.stability_figures
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import revformers as rf
from lab import REPOSITORY
from lab.bench.study_plot import STYLE
from lab.command import as_command
from lab.docs.markdown import result
from revformers.analysis.jacobian import KINDS
from revformers.analysis.linear import Region, region, stable_segment
from revformers.dynamics import Coefficients

FOLDER = REPOSITORY / "docs" / "science"

Curves = Iterator[tuple[str, list[float], Sequence[float]]]
"""The name of a dynamics, the layers of its points, and their values."""

ValuesOf = Callable[[Mapping[str, Any]], Sequence[float] | None]
"""What is drawn of one dynamics of the result."""

COLOURS = {"residual": "C7", "midpoint": "C0", "leapfrog": "C1", "blended_midpoint": "C2", "hamiltonian": "C3"}
NAMES = {name: name for name in COLOURS} | {"blended_midpoint": "blend 1/2"}
LEVELS = (1.25, 1.5, 2.0, 3.0, 4.0)
REAL, IMAGINARY = (-6.0, 4.0), (-4.0, 4.0)
SHOWN_MODEL = "SmolLM2"

PANELS: tuple[tuple[str, Coefficients, bool, str], ...] = (
    ("residual, forwards", rf.Residual().coefficients(0), True, "block"),
    ("midpoint, both directions", rf.Midpoint().coefficients(0), True, "block"),
    ("leapfrog, both directions", rf.Leapfrog().coefficients(0), True, "block"),
    ("blend 1/2, forwards", rf.BlendedMidpoint("1/2").coefficients(0), True, "block"),
    ("blend 1/2, inverse", rf.BlendedMidpoint("1/2").coefficients(0), False, "block"),
    ("hamiltonian, both directions", rf.Leapfrog().coefficients(0), True, "branches"),
)
"""Title, coefficients, whether the growth is that of the forward pass, and which eigenvalues lie over it. A
Hamiltonian layer grows as leapfrog does with an eigenvalue of the product of its branches."""


def points_of(values: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Return the real and the imaginary parts of eigenvalues, with those of the conjugates."""
    return [re for re, _ in values] * 2, [im for _, im in values] + [-im for _, im in values]


def extremes_of(model: Mapping[str, Any], of: str) -> list[list[float]]:
    """Return the extreme eigenvalues of all analysed layers, of "block" or of "branches"."""
    found = [spectrum[of][kind] for spectrum in model["spectra"] if spectrum[of] for kind in KINDS]
    return [value for value in found if value is not None]


def regions(study: Mapping[str, Any]) -> Figure:
    """Return the growth of every dynamics over the complex plane, with the eigenvalues of real layers over it."""
    model = next(one for one in study["models"] if one["name"].startswith(SHOWN_MODEL))
    figure = Figure(figsize=(10.5, 6.4), layout="constrained")
    x, y = np.linspace(*REAL, 161), np.linspace(*IMAGINARY, 129)
    for number, (title, step, forwards, of) in enumerate(PANELS, start=1):
        axes = figure.add_subplot(2, 3, number)
        _region(axes, region(step, x, y), forwards)
        segment = stable_segment(step)
        if segment:
            ends = np.array(segment)
            axes.plot(ends.real, ends.imag, color="#2a7f3f", linewidth=4, solid_capstyle="round", gid="stable segment")
        if of == "block":
            for block in model["blocks"][-2:-1]:  # those of more layers would hide each other
                (dots,) = axes.plot(*points_of(block["eigenvalues"]), ",", color="#666666")
                dots.set(gid=f"layer {block['layer']}", rasterized=True)
        axes.plot(*points_of(extremes_of(model, of)), "x", color="#b03030", markersize=5, gid="extremes")
        axes.set(title=title, xlim=REAL, ylim=IMAGINARY)
        axes.set_xlabel("real part of lambda" if of == "block" else "real part of mu")
        axes.grid(False)
    figure.suptitle(
        "growth per step (lines), the stable segment or region (green), and eigenvalues of SmolLM2's layers: extremes "
        "(crosses) and all of one layer and token (dots)",
        fontsize="small",
        x=0.01,
        ha="left",
    )
    return figure


def _region(axes: Axes, found: Region, forwards: bool) -> None:
    growth = found.forward if forwards else found.inverse
    axes.contourf(found.real, found.imaginary, growth, levels=[0, 1 - 1e-9], colors=["#d8efdc"])
    lines = axes.contour(found.real, found.imaginary, growth, levels=LEVELS, colors="#8899bb", linewidths=0.8)
    axes.clabel(lines, fontsize=7)


def curves(model: Mapping[str, Any], values_of: ValuesOf) -> Curves:
    """Yield the name of every dynamics, the layers of its points, and its values by step; empty ones are left out."""
    for one in model["dynamics"]:
        if values := values_of(one):
            steps = len(one["growth_forwards"]) - 1
            yield one["name"], [place / steps * model["layers"] for place in range(len(values))], values


def growth(study: Mapping[str, Any]) -> Figure:
    """Return the growth of perturbations along depth, forwards and through the inverse."""
    return _grid(
        study,
        [
            ("growth forwards", partial(curves, values_of=lambda one: one["growth_forwards"])),
            ("growth of the inverse", partial(curves, values_of=lambda one: (one["growth_backwards"] or [])[::-1])),
        ],
    )


def reversal(study: Mapping[str, Any]) -> Figure:
    """Return the errors of states that are rebuilt in floating point, along depth."""

    def errors(states: str) -> ValuesOf:
        return lambda one: one["reversal_errors"].get(states, [])[1:-2]  # from p[0]; the last two states are kept

    rows = [
        (f"relative error, {states} states", partial(curves, values_of=errors(states)))
        for states in ("float32", "bfloat16")
    ]
    return _grid(study, rows)


def energy(study: Mapping[str, Any]) -> Figure:
    """Return the mean square of the states along depth, and how far what a linear step conserves has moved."""

    def moved(model: Mapping[str, Any]) -> Curves:
        for name, _, values in curves(model, lambda one: one["invariants"]):  # one per layer, by block and by branch
            moved = [abs(value - values[0]) / abs(values[0]) for value in values[1:]]
            yield name, list(map(float, range(1, len(values)))), moved

    squares = partial(curves, values_of=lambda one: one["mean_squares"][1:])  # from p[0]
    return _grid(study, [("mean square of p[l]", squares), ("|E[l] - E[0]| / |E[0]|", moved)])


def _grid(study: Mapping[str, Any], rows: Sequence[tuple[str, Callable[[Mapping[str, Any]], Curves]]]) -> Figure:
    """Return a figure with a row per quantity and a column per model; the values have a logarithmic axis."""
    models = study["models"]
    figure = Figure(figsize=(3.6 * len(models), 2.7 * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots(len(rows), len(models), squeeze=False, sharey="row")
    for row, (label, series) in zip(axes, rows, strict=True):
        for panel, model in zip(row, models, strict=True):
            for name, places, values in series(model):
                known = [np.nan if value is None or value == 0 else value for value in values]
                panel.plot(places, known, color=COLOURS[name], label=NAMES[name], gid=name)
            panel.set(yscale="log", xlabel="layer")
            panel.set_title(_short(model["name"]))
        row[0].set_ylabel(label)
    handles = {line.get_label(): line for panel in axes.flat for line in panel.get_lines()}
    figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=5, frameon=False)
    return figure


def _short(name: str) -> str:
    return name.partition("-Instruct")[0] if name.startswith(SHOWN_MODEL) else name


FIGURES = {"regions": regions, "growth": growth, "reversal": reversal, "energy": energy}
"""By name of the file: the function that draws it from the result of the study."""


def draw(study: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw all figures of the study into `folder` as stability-NAME.svg, and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with matplotlib.rc_context(STYLE):
        for name, figure_of in FIGURES.items():
            files.append(folder / f"stability-{name}.svg")
            figure_of(study).savefig(files[-1], metadata={"Date": None}, dpi=150)
    return files


def main() -> None:
    """Draw the figures of the page."""
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    for file in draw(result("stability"), FOLDER):
        print(file.relative_to(REPOSITORY))


if __name__ == "__main__":
    as_command(main)
