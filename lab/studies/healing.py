"""Measures how a short fine-tune heals a conversion: validation loss against tokens, several seeds per arm.

    python -m lab.studies.healing MODEL --training TRAIN.txt --validation VALID.txt --output RESULT.json --plot PLOT.svg

With distillation the original is the teacher and does not change. With the cross-entropy it is an arm of its own,
fine-tuned on the same tokens. Activations are stored, which takes less time than rebuilding them and gives the same
gradients to the bit.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure
from rich.console import Console

from lab.bench.environment import output_file, write_result
from lab.command import as_command
from revformers.training.console import command_console
from revformers.training.finetune import finetune
from revformers.training.finetune_recipe import load_finetune_recipe
from revformers.training.titled_table import TitledTable

ARMS: dict[str, dict[str, Any]] = {
    "original": {"conversion": {"bits": None}},
    "2 bits": {"conversion": {"bits": 2}},
    "1 bit": {"conversion": {"bits": 1}},
    "1 bit, previous MLP": {"conversion": {"bits": 1, "predictor": "previous_mlp"}},
    "0 bits": {"conversion": {"bits": 0}},
    "0 bits, update": {"conversion": {"bits": 0, "predictor": "update"}},
    "0 bits, previous MLP": {"conversion": {"bits": 0, "predictor": "previous_mlp"}},
    "0 bits, previous update": {"conversion": {"bits": 0, "predictor": "previous_update"}},
    "0 bits, annealed": {"conversion": {"bits": 0}, "annealing": True},
    "0 bits, no predictor": {"conversion": {"bits": 0, "predictor": "none"}},
    "0 bits, no predictor, annealed": {"conversion": {"bits": 0, "predictor": "none"}, "annealing": True},
}


def recipe_of(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe of one run, in types that YAML supports."""
    values = ARMS[arm]
    distillation = options.loss == "distillation"
    steps = options.tokens // (options.batch * options.length)
    return {
        "model": {"name": str(options.model)},
        "conversion": {"sequences": options.sequences, "activations": "store", **values["conversion"]},
        "data": {
            "source": str(options.training),
            "validation_source": str(options.validation),
            "validation_blocks": options.held_out,
            "block_length": options.length,
        },
        "loss": {"cross_entropy": float(not distillation), "distillation": float(distillation)},
        # The blends change during the first three quarters; the rest runs at the target.
        "annealing": {"steps": 3 * steps // 4 if values.get("annealing") else 0},
        "training": {
            "max_steps": steps,
            "per_device_train_batch_size": options.batch,
            "per_device_eval_batch_size": 8,
            "learning_rate": options.learning_rate,
            "precision": options.precision,
            "warmup_steps": 0.1,
            "weight_decay": 0.0,
            "adam_beta2": 0.99,
            "eval_steps": max(1, steps // options.points),
            "save_steps": steps,
            "logging_steps": max(1, steps // options.points),
            "seed": seed,
            "arguments": {"use_cpu": True, "save_strategy": "no"},
        },
    }


def measure(arm: str, seed: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run one arm with one seed and return its losses, in nats per token, and its curve over tokens."""
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe_of(arm, seed, options)), encoding="utf-8")
    with (folder / "log").open("a", encoding="utf-8") as log:
        result = finetune(
            load_finetune_recipe(file, {"output": str(folder / "run")}), overwrite=True, console=Console(file=log)
        )
    if not result.finished:
        raise SystemExit(f"{arm}, seed {seed}, was stopped by a signal; repeat the command to continue.")
    if options.keep is not None:
        shutil.copytree(result.directory / "model", options.keep / f"{arm}, seed {seed}", dirs_exist_ok=True)
    history = json.loads((result.directory / "history.json").read_text(encoding="utf-8"))
    tokens = options.batch * options.length
    curve = [(entry["step"] * tokens, entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    start = result.metrics["initial_validation_loss"]
    return {
        "arm": arm,
        "seed": seed,
        "original": result.metrics.get("original_validation_loss", start),
        "before": start,
        "after": result.metrics["validation_loss"],
        "curve": [(0, start), *curve],
    }


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that all runs of a study share."""
    names = ("loss", "tokens", "batch", "length", "learning_rate", "precision", "sequences", "held_out")
    files = {name: getattr(options, name).name for name in ("model", "training", "validation")}
    return files | {name: getattr(options, name) for name in names}


def finished(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the runs that an interrupted study of the same kind left in its output."""
    if not options.output.is_file():
        return []
    before = json.loads(options.output.read_text(encoding="utf-8"))
    for name, value in settings(options).items():
        if before.get(name) != value:
            raise SystemExit(
                f"{options.output} holds a study with another {name}, {before.get(name)}; name another file."
            )
    rows: list[dict[str, Any]] = before["rows"]
    return rows


def reference(rows: Sequence[dict[str, Any]], row: dict[str, Any]) -> float:
    """Return the reference of a run: the original trained in the same way, or unchanged for distillation."""
    trained = [other["after"] for other in rows if other["arm"] == "original" and other["seed"] == row["seed"]]
    return trained[0] if trained else row["original"]


def table(rows: Sequence[dict[str, Any]]) -> TitledTable:
    """Return the table of all arms, relative to the original."""
    result = TitledTable(left=("arm",), right=("seeds", "before", "after: mean", "lowest", "highest"))
    for arm in dict.fromkeys(row["arm"] for row in rows):
        runs = [row for row in rows if row["arm"] == arm]
        before = statistics.mean(row["before"] / row["original"] - 1 for row in runs)
        after = [row["after"] / reference(rows, row) - 1 for row in runs]
        result.add(
            arm,
            str(len(runs)),
            f"{before:+.2%}",
            *(f"{figure:+.2%}" for figure in (statistics.mean(after), min(after), max(after))),
        )
    return result


def draw(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw the loss increase over the original against tokens: a line per seed, a colour per arm."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, arm in enumerate(dict.fromkeys(row["arm"] for row in rows)):
        for row in (row for row in rows if row["arm"] == arm):
            tokens, losses = zip(*row["curve"], strict=True)
            increases = [100 * (loss / row["original"] - 1) for loss in losses]
            label = arm if row["seed"] == rows[0]["seed"] else None
            axes.plot([value / 1000 for value in tokens], increases, color=f"C{index}", label=label, linewidth=1.2)
    axes.set(xlabel="thousand tokens", ylabel="validation loss over the original's, %")
    if max(row["before"] / row["original"] for row in rows) > 1.02:
        axes.set_yscale("symlog", linthresh=1)
    axes.axhline(0, color="grey", linewidth=0.6)
    axes.legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def main() -> None:
    """Run every arm with every seed, print the table, write the result and the curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="directory of an ordinary causal language model")
    parser.add_argument("--training", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--loss", choices=["distillation", "cross_entropy"], default="distillation")
    parser.add_argument("--tokens", type=int, default=500_000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=3e-5)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--points", type=int, default=5, help="points of a curve")
    parser.add_argument("--sequences", type=int, default=64, help="calibration sequences")
    parser.add_argument("--held-out", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=output_file, required=True)
    parser.add_argument("--plot", type=output_file)
    parser.add_argument("--keep", type=Path, help="directory for the healed models, in folders named by arm and seed")
    options = parser.parse_args()
    arms = [arm for arm in options.arms if arm != "original" or options.loss == "cross_entropy"]
    console, rows = command_console(), finished(options)
    with tempfile.TemporaryDirectory(prefix="revformers-") as folder:
        for seed in options.seeds:
            for arm in arms:
                if any((row["arm"], row["seed"]) == (arm, seed) for row in rows):
                    continue
                rows.append(measure(arm, seed, options, Path(folder)))
                row = rows[-1]
                console.print(f"{arm}, seed {seed}: {row['before']:.4f} -> {row['after']:.4f}")
                # An interrupted study keeps its finished runs.
                write_result(
                    options.output,
                    settings(options) | {"rows": rows},
                    sys.argv[1:],
                    program="python -m lab.studies.healing",
                )
    console.print(table(rows))
    if options.plot is not None:
        draw(rows, options.plot)


if __name__ == "__main__":
    as_command(main)
