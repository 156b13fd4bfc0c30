"""Trains small networks with gradients by the floating-point inverse, beside the same networks with the right ones.

    python -m lab.studies.reversal_training --training TRAIN.txt --validation VALID.txt --output RESULT.json

Networks that are built like Llama read bytes. Each is trained twice from the same fresh weights on the same batches: by
ordinary autograd of the recurrence, and with states that the backward pass rebuilds by the floating-point inverse
(`lab.float_reversal`). The layers compute in float32; the states are in float32, or in bfloat16, as in a network whose
stream is in half precision. The result holds both curves, the held-out losses, and the error of the gradient by the
inverse before the training and after each of the two.
"""

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lab.bench.environment import output_file, write_result
from lab.bench.short_training import mean_loss, train_in_turns
from lab.bench.workload import MeasuredWorkload, llama_config
from lab.command import as_command
from lab.float_reversal import FloatStack, States, put_in_place
from lab.studies.reversal import DYNAMICS, Format, comparison, fresh, run
from lab.studies.state_loss import batches_of, bytes_of
from revformers.training.console import command_console
from revformers.training.titled_table import TitledTable

STATES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ARMS: tuple[States, ...] = ("autograd", "inverse")


def gradient_error(model: Any, ids: Tensor, dynamics: str, states: torch.dtype) -> dict[str, float | None]:
    """Return the error and the cosine of the gradient by the inverse, for a model with its own layers."""
    kind = Format(torch.float32, states)
    found, reference = (run(model, ids, DYNAMICS[dynamics], kind, arm).gradients for arm in ("inverse", "autograd"))
    return comparison(found, reference)


def trained(options: argparse.Namespace, dynamics: str, states: str, seed: int) -> dict[str, Any]:
    """Train a network both ways, and return the losses and the errors of the gradient."""
    length, size, number = options.length, options.batch, options.steps * options.batch
    workload = MeasuredWorkload(llama_config(options.layers, options.width, 256, length), seed=seed)
    untrained = fresh(workload.config)(seed).train()
    batches = batches_of(bytes_of(options.training, length, seed * number, number), size, seed)
    held_out = batches_of(bytes_of(options.validation, length, 0, options.held_out), size, 0)
    models: dict[str, Any] = {}
    layers: dict[str, Any] = {}
    for arm in ARMS:
        models[arm] = copy.deepcopy(untrained)
        layers[arm] = models[arm].model.layers
        put_in_place(models[arm], FloatStack(layers[arm], DYNAMICS[dynamics], STATES[states], arm))
    curves = train_in_turns(workload, models, batches, options.learning_rate).losses
    after = {arm: mean_loss(workload, model, held_out) for arm, model in models.items()}
    ids, errors = held_out[0]["input_ids"], {}
    for name, model in models.items():
        model.model.layers = layers[name]
    for weights, model in {"fresh": untrained, **models}.items():
        errors[weights] = gradient_error(model, ids, dynamics, STATES[states])
    row = {"dynamics": dynamics, "states": states, "seed": seed}
    return {**row, "curves": curves, "held_out": after, "gradient": errors}


def shown(rows: list[dict[str, Any]]) -> TitledTable:
    """Return the table of the terminal."""
    table = TitledTable(left=("dynamics", "states"), right=("seed", *ARMS, "error fresh", "error trained", "cosine"))
    for row in rows:
        errors = row["gradient"]
        figures = errors["fresh"]["error"], errors["autograd"]["error"], errors["autograd"]["cosine"]
        words = ("not finite" if figure is None else f"{figure:.3g}" for figure in figures)
        losses = (f"{row['held_out'][arm]:.4f}" for arm in ARMS)
        table.add(row["dynamics"], row["states"], str(row["seed"]), *losses, *words)
    return table


def main() -> None:
    """Train all networks, print a table and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--training", type=Path, required=True, help="a text")
    parser.add_argument("--validation", type=Path, required=True, help="another text")
    parser.add_argument("--dynamics", nargs="+", choices=DYNAMICS, default=list(DYNAMICS))
    parser.add_argument("--states", nargs="+", choices=STATES, default=list(STATES))
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--held_out", type=int, default=64, help="rows of the other text")
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=output_file, required=True)
    options = parser.parse_args()
    rows = [
        trained(options, dynamics, states, seed)
        for seed in range(options.seeds)
        for dynamics in options.dynamics
        for states in options.states
    ]
    paths = ("training", "validation", "output")
    settings = {name: value for name, value in vars(options).items() if name not in paths}
    write_result(
        options.output, {**settings, "rows": rows}, sys.argv[1:], program="python -m lab.studies.reversal_training"
    )
    command_console().print(shown(rows))


if __name__ == "__main__":
    as_command(main)
