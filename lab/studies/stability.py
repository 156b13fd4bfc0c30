"""Analyses the stability of real networks' layers, as the page docs/science/stability.md shows it.

    python -m lab.studies.stability MODEL [MODEL ...] --fresh MODEL --text TEXT --output RESULT.json

Every model is analysed by `revformers.analysis.analyze` in float32 on the first tokens of the text, under the ordinary
dynamics, midpoint, leapfrog, a blend of 1/2 and Hamiltonian. A model given to --fresh is also analysed with fresh
weights, as before its training. For some layers all eigenvalues of the last token's block of the Jacobian are found as
well, without Arnoldi's iteration.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import revformers as rf
from lab.bench.environment import output_file, write_result
from lab.command import as_command
from revformers.analysis import analyze
from revformers.analysis.analyze import spread_layers
from revformers.analysis.jacobian import token_block
from revformers.analysis.walk import differentiable_attention, steps_of, walk
from revformers.checkpoints.load import load_causal_lm, load_tokenizer
from revformers.cli.analyze_table import dynamics_table, spectrum_table
from revformers.models.visit import layer_calls
from revformers.training.console import command_console

DYNAMICS = (rf.Residual(), rf.Midpoint(), rf.Leapfrog(), rf.BlendedMidpoint("1/2"), rf.Hamiltonian())


def tokens_of(model: str, text: Path, length: int) -> Tensor:
    """Return the first tokens of a text, int64[1, length]."""
    beginning = text.read_text(encoding="utf-8")[: 40 * length]
    ids = load_tokenizer(model)(beginning, add_special_tokens=False)["input_ids"][:length]
    if len(ids) < length:
        raise SystemExit(f"{text} holds only {len(ids)} tokens.")
    return torch.tensor([ids])


def blocks_of(model: nn.Module, ids: Tensor, layers: Sequence[int]) -> list[dict[str, Any]]:
    """Return all eigenvalues of the last token's block of the Jacobian, by layer, at the ordinary network's states."""
    rf.make_reversible(model, rf.Residual(), "store")
    with torch.no_grad(), differentiable_attention():
        embedding, calls = layer_calls(model, {"input_ids": ids})
        steps = steps_of(calls, rf.Residual())
        states = walk(steps, embedding, "repeat")[1:]
        found = []
        for layer in layers:
            block = token_block(steps[layer].field, states[layer].to(embedding.dtype), ids.shape[1] - 1)
            values = np.linalg.eigvals(block)
            upper = values[values.imag >= 0]
            found.append({"layer": layer, "eigenvalues": [[round(v.real, 5), round(v.imag, 5)] for v in upper]})
    rf.make_residual(model)
    return found


def analysed(name: str, model: Any, ids: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Return the analysis of a model, and print its tables."""
    model = model.float().eval()
    depth = model.config.num_hidden_layers
    analysis = analyze(
        model, {"input_ids": ids}, dynamics=DYNAMICS, layers=spread_layers(options.layers, depth), probes=options.probes
    )
    console = command_console()
    console.print(f"\n{name}")
    for table in (spectrum_table(analysis), dynamics_table(analysis)):
        console.print(table)
    console.print(analysis.verdict)
    blocks = blocks_of(model, ids, spread_layers(options.blocks, depth)) if options.blocks else []
    return {"name": name, **analysis.to_dict(), "blocks": blocks}


def main() -> None:
    """Analyse all models, print tables and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="directories of ordinary causal language models")
    parser.add_argument("--fresh", nargs="*", default=[], help="models to also analyse with fresh weights")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--length", type=int, default=32, help="tokens")
    parser.add_argument("--layers", type=int, default=8, help="layers whose extreme eigenvalues are found")
    parser.add_argument("--blocks", type=int, default=4, help="layers of which the block of a token is found")
    parser.add_argument("--probes", type=int, default=4, help="random directions of perturbations")
    parser.add_argument("--seed", type=int, default=0, help="of the fresh weights")
    parser.add_argument("--output", type=output_file, required=True)
    options = parser.parse_args()
    rows = []
    for directory in options.models:
        name, ids = Path(directory).name, tokens_of(directory, options.text, options.length)
        rows.append(analysed(name, load_causal_lm(directory), ids, options))
        if directory in options.fresh:
            torch.manual_seed(options.seed)
            fresh = AutoModelForCausalLM.from_config(load_causal_lm(directory).config)
            rows.append(analysed(f"{name}, fresh weights", fresh, ids, options))
    settings = {name: getattr(options, name) for name in ("length", "layers", "blocks", "probes", "seed")}
    write_result(options.output, {**settings, "models": rows}, sys.argv[1:], program="python -m lab.studies.stability")


if __name__ == "__main__":
    as_command(main)
