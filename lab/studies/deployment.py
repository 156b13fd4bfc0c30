"""Measures the cost of training reversibly and deploying the ordinary network, against training the ordinary network.

    python -m lab.studies.deployment MODEL --instructions FILE --output RESULT.json

Every arm fine-tunes the same LoRA adapters by recipes/lora-instructions.yaml, on the same records in the same order.
"ordinary" trains the ordinary network; the others convert it, train the converted network, and run the trained adapters
in the ordinary network, as `deploy: ordinary` does. They are calibrated on the training records, except the arms "by
other text". Activations are stored, which gives the same gradients as rebuilding to the bit in less time.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import revformers as rf
from lab.bench.environment import output_file, write_result
from lab.command import as_command
from revformers.checkpoints.load import load_causal_lm, load_tokenizer
from revformers.training.console import command_console
from revformers.training.finetune import finetune
from revformers.training.finetune_recipe import load_finetune_recipe
from revformers.training.titled_table import TitledTable

RECIPE = Path(__file__).parents[2] / "recipes" / "lora-instructions.yaml"
REFERENCE = "ordinary"
ARMS: dict[str, dict[str, Any]] = {
    REFERENCE: {"bits": None},
    "6 bits, blends alone": {"bits": 6, "predictor": "none"},
    "4 bits, blends alone": {"bits": 4, "predictor": "none"},
    "6 bits": {"bits": 6, "predictor": "state"},
    "4 bits": {"bits": 4, "predictor": "state"},
    "3 bits": {"bits": 3, "predictor": "state"},
    "2 bits": {"bits": 2, "predictor": "state"},
    "4 bits, by other text": {"bits": 4, "predictor": "state"},
    "2 bits, by other text": {"bits": 2, "predictor": "state"},
}
OTHER_TEXT = "by other text"


def converted_by_other_text(conversion: dict[str, Any], options: argparse.Namespace, folder: Path) -> Path:
    """Convert the model with the text of --other-text, save it in the folder, and return its directory."""
    directory = folder / f"converted-{conversion['bits']:g}"
    if not directory.is_dir():  # converted for an earlier seed
        model = load_causal_lm(str(options.model)).to(getattr(torch, options.dtype))
        tokenizer = load_tokenizer(str(options.model))
        size = {"sequences": options.sequences, "length": options.length}
        rf.convert(model, calibration=options.other_text, tokenizer=tokenizer, **size, **conversion)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    return directory


def overrides(arm: str, seed: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the recipe's fields that one run overrides."""
    model, conversion = options.model, {"activations": "store", "sequences": options.sequences, **ARMS[arm]}
    if arm.endswith(OTHER_TEXT):
        model, conversion["bits"] = converted_by_other_text(ARMS[arm], options, folder), None
    return {
        "model.name": str(model),
        "model.dtype": options.dtype,
        **{f"conversion.{name}": value for name, value in conversion.items()},
        "adapter.merge": False,
        "data.source": str(options.instructions),
        "data.validation_blocks": options.held_out,
        "data.validation_fraction": 0.1,
        "data.block_length": options.length,
        "training.max_steps": options.steps,
        "training.learning_rate": options.learning_rate,
        "training.eval_steps": options.steps,
        "training.logging_steps": options.steps,
        "training.seed": seed,
        "training.arguments.use_cpu": True,
        "training.arguments.save_strategy": "no",
    }


def measure(arm: str, seed: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run one arm with one seed and return its validation losses, nats a token."""
    recipe = load_finetune_recipe(RECIPE, {**overrides(arm, seed, options, folder), "output": str(folder / "run")})
    with (folder / "log").open("a", encoding="utf-8") as log:
        result = finetune(recipe, overwrite=True, console=Console(file=log))
    if not result.finished:
        raise SystemExit(f"{arm}, seed {seed}, was stopped by a signal.")
    return {
        "arm": arm,
        "seed": seed,
        "before": result.metrics["original_validation_loss"],
        "converted": result.metrics["initial_validation_loss"],
        "trained": result.metrics["validation_loss"],
        "deployed": result.metrics["deployed_validation_loss"],
        "tokens": result.metrics["tokens"],
    }


def table(rows: Sequence[dict[str, Any]]) -> TitledTable:
    """Return the table of all arms: deployed loss, relative to that of the ordinary network trained in the same way."""
    result = TitledTable(
        left=("arm",), right=("seed", "before", "converted", "trained", "deployed", "against ordinary training")
    )
    reference = {row["seed"]: row["deployed"] for row in rows if row["arm"] == REFERENCE}
    for row in rows:
        losses = (f"{row[name]:.4f}" for name in ("before", "converted", "trained", "deployed"))
        against = f"{row['deployed'] / reference[row['seed']] - 1:+.2%}" if row["seed"] in reference else "-"
        result.add(row["arm"], str(row["seed"]), *losses, against)
    return result


def main() -> None:
    """Run every arm with every seed, print the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="directory of an ordinary causal language model")
    parser.add_argument("--instructions", type=Path, required=True, help="records of instruction, input and output")
    parser.add_argument("--other-text", type=Path, help='a text without these records, for the arms "by other text"')
    usual = [arm for arm in ARMS if not arm.endswith(OTHER_TEXT)]
    parser.add_argument("--arms", nargs="+", default=usual, choices=list(ARMS), metavar="ARM")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--length", type=int, default=256, help="most tokens of a record, and of a block to convert by")
    parser.add_argument("--sequences", type=int, default=64, help="blocks to convert by")
    parser.add_argument("--held-out", type=int, default=96, help="records")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=output_file, required=True)
    options = parser.parse_args()
    if options.other_text is None and any(arm.endswith(OTHER_TEXT) for arm in options.arms):
        parser.error(f'An arm "{OTHER_TEXT}" needs --other-text.')
    names = ("dtype", "steps", "learning_rate", "length", "sequences", "held_out")
    settings = {"model": options.model.name, **{name: getattr(options, name) for name in names}}
    console, rows = command_console(), []
    with tempfile.TemporaryDirectory(prefix="revformers-") as folder:
        for seed in options.seeds:
            for arm in options.arms:
                rows.append(row := measure(arm, seed, options, Path(folder)))
                console.print(f"{arm}, seed {seed}: {row['deployed']:.4f}")
                # An interrupted study keeps its finished runs.
                result = settings | {"rows": rows}
                write_result(options.output, result, sys.argv[1:], program="python -m lab.studies.deployment")
    console.print(table(rows))


if __name__ == "__main__":
    as_command(main)
