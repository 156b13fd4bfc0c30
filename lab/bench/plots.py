"""Plots as inline SVG whose colours come from the page's style sheet, so that they follow its light and dark modes."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOUR_VARIABLES = {
    "#010101": "--ink",
    "#020202": "--muted",
    "#030303": "--rule",
    "#040404": "--series-1",
    "#050505": "--series-2",
    "#060606": "--series-3",
}
"""Placeholder colours for matplotlib, and the style sheet's variables that replace them in the SVG."""

INK, MUTED, RULE, *SERIES_COLOURS = COLOUR_VARIABLES
MARKERS = ("o", "s", "^")

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "revformers",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.left": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
}

WIDTH_INCHES = 4.4


@dataclass(frozen=True)
class Series:
    """A named curve: the x and y values of its points, and its index (0 to 2) in the order of colours."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0


@dataclass(frozen=True)
class Bar:
    """A named bar: its length, the quartiles around it, and its index (0 to 2) in the order of colours."""

    label: str
    lower: float
    middle: float
    upper: float
    note: str
    colour: int = 0


def line_plot(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    description: str,
    *,
    from_zero: bool = False,
    markers: bool = True,
    x_ticks: Sequence[float] | None = None,
) -> str:
    """Return curves as an SVG element, each with its name at its right end.

    Args:
        series: at most three curves.
        x_label: name and unit of x.
        y_label: name and unit of y; written above the axis.
        description: a text alternative for readers who cannot see the plot.
        from_zero: start the y axis at 0.
        markers: draw the points.
        x_ticks: positions of the ticks of the x axis; None lets matplotlib choose.

    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _new_figure(height_inches=3.2)
        for one in series:
            colour = SERIES_COLOURS[one.colour]
            axes.plot(one.x, one.y, color=colour, marker=MARKERS[one.colour] if markers else None)
        if from_zero:
            axes.set_ylim(bottom=0, top=1.06 * max(max(one.y) for one in series))
        if x_ticks is not None:
            axes.set_xticks(list(x_ticks))
        axes.set_xlabel(x_label)
        axes.set_title(y_label, loc="left", fontsize=10.5, color=MUTED)
        _label_right_ends(axes, series)
        return _as_svg(figure, description)


def bar_plot(bars: Sequence[Bar], x_label: str, description: str) -> str:
    """Return horizontal bars from zero as an SVG element, with quartile whiskers and a note at the end of each bar."""
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x", "axes.spines.bottom": False, "xtick.bottom": False}):
        figure, axes = _new_figure(height_inches=0.8 + 0.44 * len(bars))
        for row, bar in enumerate(bars):
            axes.barh(row, bar.middle, height=0.55, color=SERIES_COLOURS[bar.colour])
            axes.plot([bar.lower, bar.upper], [row, row], color=INK, linewidth=1.2)
            axes.annotate(bar.note, (max(bar.upper, bar.middle), row), (5, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.invert_yaxis()
        # Leaves room for the notes to the right of the bars.
        axes.set_xlim(0, 1.35 * max(max(bar.upper, bar.middle) for bar in bars))
        axes.set_xlabel(x_label)
        return _as_svg(figure, description)


def _new_figure(height_inches: float) -> tuple[Figure, Axes]:
    """Return a transparent figure with one set of axes, which is not registered with any window manager."""
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained", facecolor="none")
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    return figure, axes


def _label_right_ends(axes: Axes, series: Sequence[Series]) -> None:
    """Write each curve's name to the right of its last point, and move names apart that would overlap."""
    low, high = axes.get_ylim()
    line_height = 0.085 * (high - low)
    position = float("-inf")
    for one in sorted(series, key=lambda one: one.y[-1]):
        position = max(one.y[-1], position + line_height)
        axes.annotate(
            one.label,
            (1.0, position),
            (4, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va="center",
            color=SERIES_COLOURS[one.colour],
            fontweight="bold",
            annotation_clip=False,
        )


def _as_svg(figure: Figure, description: str) -> str:
    """Return the figure as one SVG element for a page, without an XML prologue and with the page's colours."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    svg = text[text.index("<svg") :]
    svg = re.sub(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"', "", svg)
    svg = re.sub(r'\s(?:width|height)="[^"]*pt"', "", svg, count=2)
    for stand_in, variable in COLOUR_VARIABLES.items():
        svg = svg.replace(stand_in, f"var({variable})")
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
