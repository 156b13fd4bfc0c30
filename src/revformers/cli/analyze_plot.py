"""The plots of an analysis: eigenvalues in the complex plane, growth, rounding and energy along depth."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from revformers.analysis import Analysis
from revformers.cli.plot_style import STYLE


def draw(analysis: Analysis, folder: Path) -> list[Path]:
    """Draw the plots of an analysis as SVG files into `folder`, and return the files."""
    names = {one.name: one for one in analysis.dynamics}
    with_inverse = {name: one for name, one in names.items() if one.growth_backwards is not None}
    files = []

    def save(name: str, fill: Callable[[Axes], None]) -> None:
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(6, 3.6), layout="constrained")
            axes = figure.subplots()
            fill(axes)
            axes.legend(frameon=False, fontsize=8.5)
            folder.mkdir(parents=True, exist_ok=True)
            files.append(folder / f"{name}.svg")
            figure.savefig(files[-1], metadata={"Date": None})

    colours = {name: f"C{place}" for place, name in enumerate(names)}

    def curves(axes: Axes, series: Iterable[tuple[str, Any]], y_label: str) -> None:
        positive = False
        for name, values in series:
            steps = len(names[name].growth_forwards) - 1
            layers = [place / steps * analysis.layers for place in range(len(values))]
            axes.plot(layers, values, label=name, gid=name, color=colours[name])
            positive |= any(value > 0 for value in values)
        axes.set(xlabel="layer", ylabel=y_label, yscale="log" if positive else "linear")

    def eigenvalues(axes: Axes) -> None:
        for spectrum in analysis.spectra:
            found = spectrum.block.found
            points = [*found, *(value.conjugate() for value in found)]
            axes.scatter([p.real for p in points], [p.imag for p in points], s=14, label=f"layer {spectrum.layer}")
        axes.axvline(0, color="grey", linewidth=0.6)
        axes.axhline(0, color="grey", linewidth=0.6)
        axes.set(xlabel="real part", ylabel="imaginary part")

    if analysis.spectra:
        save("eigenvalues", eigenvalues)
    forwards = [(name, one.growth_forwards) for name, one in names.items()]
    save("growth-forwards", lambda axes: curves(axes, forwards, "growth forwards"))
    if with_inverse:
        backwards = [(name, (one.growth_backwards or ())[::-1]) for name, one in with_inverse.items()]
        save("growth-inverse", lambda axes: curves(axes, backwards, "growth of the inverse"))
        errors = [(name, one.reversal_errors["float32"][1:-2]) for name, one in with_inverse.items()]
        save("reversal", lambda axes: curves(axes, errors, "relative error, float32 states"))
    energy = [(name, one.mean_squares[1:]) for name, one in names.items()]
    save("energy", lambda axes: curves(axes, energy, "mean square of the state"))
    return files
