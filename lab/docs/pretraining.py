"""Tables and the figure of docs/science/pretraining.md, from the committed studies of pretraining.

    python -m lab.docs.pretraining

writes the figure of every study, docs/science/pretraining-NAME.svg.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab import REPOSITORY
from lab.bench.study_plot import MARKERS, STYLE
from lab.docs.markdown import RESULTS, result, show

FOLDER = REPOSITORY / "docs" / "science"
ORDINARY = "residual"

Row = Mapping[str, Any]


def pretraining_conditions(name: str) -> None:
    """Print the network, the text and the training of a study, as a paragraph."""
    study = result(f"pretraining-{name}")["study"]
    run, tuning = study["run"], study["tuning"]
    config, training = run["model"]["config"], run["training"]
    tokens = training["per_device_train_batch_size"] * run["data"]["block_length"]
    parameters = {row["parameters"] for row in result(f"pretraining-{name}")["rows"] if not row["error"]}
    print(
        f"{run['model']['architecture'].capitalize()} of {config['num_hidden_layers']} layers and width "
        f"{config['hidden_size']}, {_one(parameters):,} parameters in every arm; {training['max_steps']} steps of "
        f"{training['per_device_train_batch_size']} x {run['data']['block_length']} tokens, "
        f"{training['max_steps'] * tokens:,} in all; AdamW, cosine schedule; learning rates "
        f"{', '.join(map(_rate, tuning['learning_rates']))} tried in {tuning['max_steps']} steps each with seed "
        f"{tuning['seed']}; seeds {', '.join(map(str, study['seeds']))} compared."
    )


def pretraining_losses(name: str) -> None:
    """Print the validation loss of every arm and its paired difference from the ordinary network."""
    study = result(f"pretraining-{name}")
    ordinary = compared(study)[ORDINARY]
    rows = []
    for arm, losses in sorted(compared(study).items(), key=lambda item: mean(item[1].values())):
        found = list(losses.values())
        differences = paired(losses, ordinary)
        rates = {row["learning_rate"] for row in study["rows"] if _is_compared(study, row) and row["arm"] == arm}
        rows.append(
            (
                arm,
                _rate(_one(rates)),
                f"{mean(found):.3f}",
                f"{min(found):.3f} to {max(found):.3f}",
                "-" if arm == ORDINARY else f"{mean(differences):+.3f}",
                "-" if arm == ORDINARY else ", ".join(f"{one:+.3f}" for one in differences),
            )
        )
    show("dynamics | learning rate | loss | seeds | over the ordinary network | by seed", rows)


def pretraining_rates(name: str) -> None:
    """Print the validation loss of every trial by which the learning rates were chosen."""
    study = result(f"pretraining-{name}")
    rates = study["study"]["tuning"]["learning_rates"]
    losses = {
        (row["arm"], row["learning_rate"]): row["validation_loss"] for row in study["rows"] if _is_trial(study, row)
    }
    rows = []
    for arm in study["study"]["arms"]:
        found = [losses.get((arm, rate)) for rate in rates]
        best = min(loss for loss in found if loss is not None)
        rows.append(
            (arm, *("diverged" if one is None else f"**{one:.3f}**" if one == best else f"{one:.3f}" for one in found))
        )
    show(" | ".join(("dynamics", *map(_rate, rates))), rows)


def pretraining_spread(name: str) -> None:
    """Print how much seeds alone change a loss and a paired difference, as a sentence."""
    study = result(f"pretraining-{name}")
    losses = compared(study)
    alone = mean(stdev(found.values()) for found in losses.values())
    pairs = mean(stdev(paired(found, losses[ORDINARY])) for arm, found in losses.items() if arm != ORDINARY)
    print(
        f"The standard deviation between seeds is {alone:.3f} for the loss of one dynamics, and {pairs:.3f} for its "
        f"difference from the ordinary network with the same seed (means over the dynamics)."
    )


def compared(study: Row) -> dict[str, dict[int, float]]:
    """Return the validation loss of every arm by seed, over the compared runs; diverged ones are left out."""
    losses: dict[str, dict[int, float]] = {}
    for row in study["rows"]:
        if _is_compared(study, row) and row["validation_loss"] is not None:
            losses.setdefault(row["arm"], {})[row["seed"]] = row["validation_loss"]
    return {arm: dict(sorted(losses[arm].items())) for arm in study["study"]["arms"] if arm in losses}


def paired(losses: Mapping[int, float], ordinary: Mapping[int, float]) -> list[float]:
    """Return the differences of two arms, seed by seed."""
    return [loss - ordinary[seed] for seed, loss in losses.items() if seed in ordinary]


def figure_of(study: Row) -> Figure:
    """Return the differences by seed, and the mean difference of the validation losses along the training."""
    losses = compared(study)
    arms = sorted((arm for arm in losses if arm != ORDINARY), key=lambda arm: -mean(losses[arm].values()))
    figure = Figure(figsize=(9.4, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, arm in enumerate(arms):
        differences = paired(losses[arm], losses[ORDINARY])
        left.plot(differences, [place] * len(differences), MARKERS[place], color=f"C{place}", alpha=0.7)
        left.plot([mean(differences)] * 2, [place - 0.3, place + 0.3], color=f"C{place}")
        steps, means = _curve(study, arm)
        right.plot(steps, means, f"-{MARKERS[place]}", color=f"C{place}", label=arm)
    left.set_yticks(range(len(arms)), arms)
    left.grid(axis="y", visible=False)
    left.set_title("after training: every seed, and the mean")
    right.set_title("along the training: the mean")
    right.set_xlabel("optimizer steps")
    for axes in (left, right):
        _zero(axes, vertical=axes is left)
    left.set_xlabel("validation loss over that of the ordinary network, nats per token")
    figure.legend(*right.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def save_figures(folder: Path = FOLDER) -> list[Path]:
    """Write the figure of every committed study."""
    files = []
    for file in sorted(RESULTS.glob("pretraining-*.json")):
        with matplotlib.rc_context(STYLE):
            files.append(folder / f"{file.stem}.svg")
            figure_of(result(file.stem)).savefig(files[-1], metadata={"Date": None})
    return files


def _curve(study: Row, arm: str) -> tuple[list[int], list[float]]:
    """Return the steps of the validations, and the mean paired difference at each."""
    by_step: dict[int, list[float]] = {}
    curves = {(row["arm"], row["seed"]): dict(_validations(row)) for row in study["rows"] if _is_compared(study, row)}
    for (other, seed), curve in curves.items():
        if other == arm and (ORDINARY, seed) in curves:
            for step, loss in curve.items():
                by_step.setdefault(step, []).append(loss - curves[ORDINARY, seed][step])
    return list(by_step), [mean(found) for found in by_step.values()]


def _validations(row: Row) -> Iterator[tuple[int, float]]:
    return ((entry["step"], entry["eval_loss"]) for entry in row["curve"] if "eval_loss" in entry)


def _zero(axes: Axes, *, vertical: bool) -> None:
    (axes.axvline if vertical else axes.axhline)(0, color="#888888", linewidth=1)


def _is_compared(study: Row, row: Row) -> bool:
    return row["seed"] in study["study"]["seeds"] and row["max_steps"] == study["study"]["run"]["training"]["max_steps"]


def _is_trial(study: Row, row: Row) -> bool:
    return row["seed"] == study["study"]["tuning"]["seed"]


def _rate(rate: float) -> str:
    digits, exponent = f"{rate:e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def _one(values: set[Any]) -> Any:
    (value,) = values
    return value


def main() -> None:
    """Write the figures."""
    for file in save_figures():
        print(file.relative_to(REPOSITORY))


if __name__ == "__main__":
    main()
