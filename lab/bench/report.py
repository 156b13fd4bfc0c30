"""One self-contained HTML page about a training run and its comparison."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from lab.bench import numbers, reading
from lab.bench.environment import command_line
from lab.bench.finetune_report import finetune_parts
from lab.bench.plots import Bar, Series, bar_plot, line_plot
from revformers.files import write_text
from revformers.training.run_directory import RunDirectory

ARM_COLOURS = {"store": 0, "checkpoint": 1, "rebuild": 2}
COMPARISON, STEPS, EVALUATION = "comparison.json", "lora-step.json", "evaluation.json"


@dataclass(frozen=True)
class RunFiles:
    """The files of a run directory that a report shows; None for a file that does not exist.

    Attributes:
        history: the loss curve, entries with "step" and "loss" or "eval_loss".
        metrics: the figures of the finished run.
        samples: the texts that the model wrote.
        comparison: the result of `python -m lab compare`.
        recipe: the recipe of the run.
        steps: the result of `lab/studies/lora_step.py`.
        evaluation: the result of `python -m lab evaluate` on the model, alone or compared with another model.

    """

    history: list[dict[str, float]] | None
    metrics: dict[str, Any] | None
    samples: list[str] | None
    comparison: dict[str, Any] | None
    recipe: dict[str, Any] | None = None
    steps: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None

    @property
    def finetuned(self) -> bool:
        """Whether the run trained a pretrained model."""
        return self.recipe is not None and "conversion" in self.recipe

    @classmethod
    def read(cls, directory: Path) -> "RunFiles":
        """Read a run directory.

        Raises:
            FileNotFoundError: if there is neither the loss curve of a finished run nor a comparison.
            ValueError: if a file is not JSON.

        """
        run = RunDirectory(directory)
        files = cls(
            history=_read_json(run.history),
            metrics=_read_json(run.metrics),
            samples=_read_samples(run.sample),
            comparison=_read_json(directory / COMPARISON),
            recipe=yaml.safe_load(run.recipe.read_text(encoding="utf-8")) if run.recipe.is_file() else None,
            steps=_read_json(directory / STEPS),
            evaluation=_read_json(directory / EVALUATION),
        )
        if not files.history and not files.comparison:
            unfinished = run.recipe.is_file() and not run.metrics.is_file()
            raise FileNotFoundError(
                f"The run in {directory} is not finished; give its command with --resume first."
                if unfinished
                else f"{directory} holds neither {run.history.name} of a training run nor the {COMPARISON} of a "
                f"comparison."
            )
        return files


def write_report(directory: Path, out: Path, arguments: Sequence[str]) -> None:
    """Write the report on the run in `directory` to `out`, atomically.

    `arguments` are the words that followed ``python -m lab`` on the command line.

    Raises:
        FileNotFoundError: if the directory holds nothing to report.
        ValueError: if one of its files is not JSON.

    """
    page = render_report(
        RunFiles.read(directory), command_line([str(directory)]).removeprefix("python -m lab "), arguments
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)


def render_report(files: RunFiles, directory: str, arguments: Sequence[str]) -> str:
    """Return the page as HTML.

    Args:
        files: the content of the page; a section whose file is missing says how to create it.
        directory: the name of the run directory in the page's commands.
        arguments: the words that followed ``python -m lab`` on the command line.

    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lab.bench", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(numbers=numbers)
    comparison = files.comparison
    measured = comparison or files.steps or files.evaluation
    shared = {
        "directory": directory,
        "metrics": files.metrics,
        "loss_plot": _loss_plot(files.history) if files.history else None,
        "machine": measured["environment"] if measured else None,
        "commands": _commands(files, directory, arguments),
    }
    if files.finetuned:
        parts = finetune_parts(files.recipe or {}, files.metrics, files.steps, files.evaluation)
        return environment.get_template("finetune_report.html.jinja").render(**shared, **parts)
    return environment.get_template("report.html.jinja").render(
        **shared,
        samples=files.samples,
        comparison=comparison,
        parts=_comparison_parts(comparison) if comparison else None,
    )


def _comparison_parts(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Return plots, tables and sentences about a comparison."""
    arms, depth = comparison["arms"], comparison["depth"]
    parts = {
        "arms_reading": reading.read_arms(arms, comparison["network"]),
        "time_plot": _time_plot(arms["rows"]),
        "dynamics_reading": reading.read_dynamics(comparison["dynamics"], comparison["options"]["dynamics_steps"]),
        "rows": {row["arm"]: row for row in arms["rows"]},
        "depth_plot": None,
    }
    if "unavailable" in depth:
        return parts
    names = list(ARM_COLOURS)
    return parts | {
        "depth_reading": reading.read_depth(depth),
        "depth_plot": _depth_plot(depth, names),
        "close_depth_plot": _depth_plot(depth, ("checkpoint", "rebuild")),
        "depth_arms": names,
        "side_information_share": max(row["side_information_share"] for row in depth["growth"]),
        "peak_rows": _by_depth(depth["points"], names, "layers", lambda point: numbers.mebibytes(point["peak"])),
        "growth_rows": _by_depth(
            [{**row, "segment": f"{row['from_layers']} to {row['to_layers']}"} for row in depth["growth"]],
            names,
            "segment",
            lambda row: numbers.share(row["share_of_layer_input"]),
        ),
    }


def _by_depth(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], key: str, cell: Callable[[Mapping[str, Any]], str]
) -> list[list[str]]:
    """Return one line per value of `key`, with a cell for each arm."""
    cells = {(row["arm"], row[key]): cell(row) for row in rows}
    return [[str(value), *(cells[name, value] for name in names)] for value in dict.fromkeys(row[key] for row in rows)]


def _loss_plot(history: Sequence[Mapping[str, float]]) -> Markup:
    """Return the loss over steps."""
    series = []
    for label, key, colour in (("training", "loss", 0), ("validation", "eval_loss", 1)):
        entries = [entry for entry in history if key in entry]
        if entries:
            steps, losses = [entry["step"] for entry in entries], [entry[key] for entry in entries]
            series.append(Series(f"{label} {losses[-1]:.2f}", steps, losses, colour))
    ends = "; ".join(f"{one.label.split()[0]} loss from {one.y[0]:.2f} to {one.y[-1]:.2f}" for one in series)
    return Markup(line_plot(series, "step", "loss, nats per token", f"Loss over steps: {ends}.", markers=False))


def _time_plot(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Return the step times as bars."""
    bars = [
        Bar(
            row["arm"],
            1000 * row["seconds"]["lower"],
            1000 * row["seconds"]["median"],
            1000 * row["seconds"]["upper"],
            numbers.seconds(row["seconds"]["median"]),
            ARM_COLOURS[row["arm"]],
        )
        for row in rows
    ]
    words = ", ".join(f"{bar.label} {bar.note}" for bar in bars)
    return Markup(bar_plot(bars, "milliseconds per forward and backward pass", f"Median step times: {words}."))


def _depth_plot(depth: Mapping[str, Any], names: Sequence[str]) -> Markup:
    """Return the peaks of some arms over depth."""
    series = []
    for name in names:
        points = [point for point in depth["points"] if point["arm"] == name]
        peaks = [point["peak"] / numbers.MEBIBYTE for point in points]
        series.append(Series(name, [point["layers"] for point in points], peaks, ARM_COLOURS[name]))
    words = "; ".join(f"{one.label} from {one.y[0]:.1f} to {one.y[-1]:.1f} MiB" for one in series)
    description = f"Peak memory from {series[0].x[0]} to {series[0].x[-1]} layers: {words}."
    return Markup(line_plot(series, "layers", "peak, MiB", description, from_zero=True, x_ticks=series[0].x))


def _commands(files: RunFiles, directory: str, arguments: Sequence[str]) -> list[str]:
    """Return the commands that produce the content of the page."""
    commands = []
    if files.history:
        command = "finetune" if files.finetuned else "pretrain"
        commands.append(f"revformers {command} {directory}/recipe.yaml --output DIRECTORY")
    measured = (files.comparison, files.steps, files.evaluation)
    return [*commands, *(result["command"] for result in measured if result), command_line(arguments)]


def _read_json(path: Path) -> Any:
    """Return the content of a JSON file, or None if it does not exist."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error


def _read_samples(path: Path) -> list[str] | None:
    """Return the texts in a sample file, which are separated by lines of dashes."""
    if not path.is_file():
        return None
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n" + "-" * 80 + "\n")
