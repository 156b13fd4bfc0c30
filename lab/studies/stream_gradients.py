"""Measures how precise the gradient of a bfloat16 model is, by the dtype in which the gradients of states are summed.

    python -m lab.studies.stream_gradients --output RESULT.json

The error is that of the whole parameter gradient, relative to its norm, against the same network with the same weights
in float64. The layers' own arithmetic in bfloat16 is most of it. The ordinary network, whose stream's gradient is in
bfloat16 throughout, is the yardstick. The residual dynamics is the ordinary network with fixed-point states, so its row
shows what summing in bfloat16 adds there.

"waiting" sums in float32, and rounds to bfloat16 only what a step adds to the gradient of the state before it, which
waits while the layer is differentiated.
"""

import argparse
import contextlib
import copy
import sys
from collections.abc import Mapping
from functools import partial
from pkgutil import resolve_name
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import revformers as rf
from lab import REPOSITORY
from lab.bench import smollm2
from lab.bench.environment import output_file, write_result
from lab.bench.workload import llama_config
from lab.command import as_command
from revformers.dynamics.base import Dynamics
from revformers.models import forward
from revformers.training.console import command_console
from revformers.training.titled_table import TitledTable

DYNAMICS: dict[str, Dynamics | None] = {
    "ordinary": None,
    "residual": rf.Residual(),
    "midpoint": rf.Midpoint(),
    "hamiltonian": rf.Hamiltonian(),
    "blended 1/16": rf.BlendedMidpoint("1/16"),
    "blended 1/2": rf.BlendedMidpoint("1/2"),
    "blended 1/2, h = 3/2": rf.BlendedMidpoint("1/2", 1.5),
    "blended at random": rf.BlendedMidpoint.random(0),
    "leapfrog": rf.Leapfrog(),
}
NEAR_ORDINARY = ("ordinary", "residual", "blended 1/16")
"""What is measured of a pretrained network; the other dynamics make it another one, whose gradients say little."""

SUMS = {"float32": torch.float32, "waiting": torch.float32, "bfloat16": torch.bfloat16}
SMOLLM2 = "SmolLM2-135M"
WAITING = "revformers.engine.trajectory._Wait.backward"
Gradients = Mapping[str, Tensor]


def gradients(model: Any, ids: Tensor) -> Gradients:
    """Return the gradients of the parameters in float64."""
    model.zero_grad()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: weight.grad.double() for name, weight in model.named_parameters() if weight.grad is not None}


def relative_error(found: Gradients, reference: Gradients) -> float:
    """Return the norm of the difference of two whole gradients, relative to the norm of the second."""
    difference = torch.stack([(found[name] - value).square().sum() for name, value in reference.items()]).sum()
    return (difference / torch.stack([value.square().sum() for value in reference.values()]).sum()).sqrt().item()


def _rounded(backward: Any, context: Any, gradient: Tensor | None) -> Any:
    """What `WAITING` names, with a gradient that is rounded to bfloat16."""
    return backward(context, None if gradient is None else gradient.to(torch.bfloat16).to(gradient.dtype))


def errors(model: Any, ids: Tensor, dynamics: Dynamics | None) -> dict[str, float]:
    """Return the error of the gradient of `model`, which is in bfloat16, for each of `SUMS`."""
    exact, narrow = copy.deepcopy(model).double(), copy.deepcopy(model)
    if dynamics is None:
        return {"bfloat16": relative_error(gradients(narrow, ids), gradients(exact, ids))}
    for network in (exact, narrow):
        rf.make_reversible(network, dynamics, rf.Store(), states="int64")
    reference = gradients(exact, ids)
    found = {}
    rounds = staticmethod(partial(_rounded, resolve_name(WAITING)))
    for name, dtype in SUMS.items():
        with contextlib.ExitStack() as patches:
            patches.enter_context(mock.patch.object(forward, "gradient_dtype", lambda *_, chosen=dtype: chosen))
            if name == "waiting":
                patches.enter_context(mock.patch(WAITING, rounds))
            found[name] = relative_error(gradients(narrow, ids), reference)
    return found


def networks(layers: list[int], tokens: int, seed: int) -> dict[str, tuple[Any, Tensor]]:
    """Return networks in bfloat16 and inputs: random weights and tokens, and SmolLM2 and text if it is available."""
    torch.manual_seed(seed)
    made: dict[str, tuple[Any, Tensor]] = {}
    for depth in layers:
        # Updates as large as those of a trained network.
        config = AutoConfig.for_model(**llama_config(depth, 96, 512, tokens) | {"initializer_range": 0.1})
        random = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        made[f"random, {depth} layers"] = random, torch.randint(512, (2, tokens))
    try:
        directory = smollm2.fetch_model()
    except smollm2.ModelUnavailableError as error:
        print(error, file=sys.stderr)
    else:
        pretrained = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
        text = AutoTokenizer.from_pretrained(directory)((REPOSITORY / "LICENSE").read_text())["input_ids"]
        made[SMOLLM2] = pretrained, torch.tensor(text[2 * seed * tokens :][: 2 * tokens]).view(2, tokens)
    return made


def main() -> None:
    """Measure all networks and dynamics, print a table and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[24, 48])
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=output_file, required=True)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for network, (model, ids) in networks(options.layers, options.tokens, seed).items():
            for name in NEAR_ORDINARY if network == SMOLLM2 else DYNAMICS:
                dynamics = DYNAMICS[name]
                rows.append(
                    {"network": network, "dynamics": name, "seed": seed, "errors": errors(model, ids, dynamics)}
                )
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    write_result(
        options.output, {**settings, "rows": rows}, sys.argv[1:], program="python -m lab.studies.stream_gradients"
    )
    table = TitledTable(left=("network", "dynamics"), right=("seed", *SUMS))
    for row in rows:
        found = (f"{row['errors'][name]:.4f}" if name in row["errors"] else "" for name in SUMS)
        table.add(row["network"], row["dynamics"], str(row["seed"]), *found)
    command_console().print(table)


if __name__ == "__main__":
    as_command(main)
