"""Draws a study as a plot in a file of its own."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.bench.arm_names import ORDINARY, ORDINARY_CHECKPOINT
from lab.bench.study_axis import AXES
from lab.bench.study_tables import network_in_words, rate, rate_heading
from revformers.byte_size import UNITS
from revformers.cli import plot_style

STYLE: dict[Any, Any] = {
    **plot_style.STYLE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "grid.color": "#e4e4e4",
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
}
MARKERS = "os^Dvpx*P"
PANEL_INCHES = (4.2, 3.4)

Row = Mapping[str, Any]
FigureOf = Callable[[Row], float | None]


def save_plot(result: Row, path: Path) -> None:
    """Draw the result of `Study.run` into a file, whose suffix determines the format.

    The ordinary network of transformers has dashed lines. If the study searched for a largest batch or sequence, the
    lower panels show it, with the speed there.
    """
    axis = AXES[result["study"]]
    at_values = [point for point in result["points"] if point["memory"] is None]
    at_largest = [point for point in result["points"] if point["memory"] is not None]
    speed = rate_heading(result)
    panels: list[tuple[str, str, Sequence[Row], FigureOf, FigureOf]] = []
    if axis.name == "budget":
        over = f"step time over {ORDINARY_CHECKPOINT}"
        panels.append(("measured peak, MiB", over, at_values, _peak, _over_checkpoint))
    elif at_values:
        panels.append((axis.heading, "peak, MiB", at_values, _x, _peak))
        panels.append((axis.heading, speed, at_values, _x, lambda point: rate(result, point)))
    if at_largest:
        grows, by_value = axis.grows, axis.at_every_value
        x, heading = (_x, axis.heading) if by_value else (_memory(result), "memory, GiB")
        panels.append((heading, f"largest {grows.replace('_', ' ')}", at_largest, x, lambda point: point.get(grows)))
        panels.append((heading, f"{speed} at the largest", at_largest, x, lambda point: rate(result, point)))
    with matplotlib.rc_context(STYLE):
        columns = min(2, len(panels))
        rows = -(-len(panels) // columns)
        width, height = PANEL_INCHES
        figure = Figure(figsize=(columns * width, rows * height + 0.6), layout="constrained")
        arms = list(dict.fromkeys(point["arm"] for point in result["points"]))
        for number, (x_label, title, points, x_of, y_of) in enumerate(panels, start=1):
            _draw(figure.add_subplot(rows, columns, number), arms, points, x_of, y_of, x_label, title)
        handles = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
        figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=2 * columns, frameon=False)
        figure.suptitle(network_in_words(result["recipe"]), fontsize="small", x=0.01, ha="left", wrap=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw(
    axes: Axes, arms: Sequence[str], points: Sequence[Row], x_of: FigureOf, y_of: FigureOf, x_label: str, title: str
) -> None:
    """Draw one line per arm; missing figures leave a gap."""
    highest, ticks = 0.0, set[float]()
    for place, arm in enumerate(arms):
        pairs = sorted((x, y) for point in points if point["arm"] == arm if (x := x_of(point)) and (y := y_of(point)))
        if pairs:
            xs, ys = zip(*pairs, strict=True)
            dashed = "--" if arm.startswith(ORDINARY) else "-"
            axes.plot(xs, ys, dashed, color=f"C{place}", marker=MARKERS[place % len(MARKERS)], label=arm)
            highest, ticks = max(highest, *ys), ticks | set(xs)
    axes.set_ylim(0, 1.08 * highest or 1)
    if x_of is not _peak:
        axes.set_xticks(sorted(ticks), [f"{tick:,.4g}" if tick % 1 else f"{tick:,.0f}" for tick in sorted(ticks)])
    axes.set_xlabel(x_label)
    axes.set_title(title)


def _x(point: Row) -> float | None:
    return float(point["value"]) if point["value"] is not None else None


def _peak(point: Row) -> float | None:
    return point["peak"] / UNITS["MiB"] if point["fits"] else None


def _over_checkpoint(point: Row) -> float | None:
    ratio = point.get("ratios", {}).get(ORDINARY_CHECKPOINT)
    return float(ratio["median"]) if ratio else None


def _memory(result: Row) -> FigureOf:
    """Return a function that maps a point to the GiB of memory within which it was the largest."""
    sizes = {row["memory"]: row["bytes"] / UNITS["GiB"] for row in result["memory"]}
    return lambda point: sizes[point["memory"]]
