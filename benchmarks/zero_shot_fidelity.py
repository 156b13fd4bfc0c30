"""How far a pretrained model's loss moves when it is made reversible without any training.

    python benchmarks/zero_shot_fidelity.py MODEL --bits 6 4 3 2 1 0 --output benchmarks/results/NAME.json

The text is sampled from the model itself, from its beginning-of-sequence token. For every side-information budget of k
bits an element a layer the model steps with `BlendedMidpoint` of blend 2**-k and -2**-k, and the rebuilt gradient is
compared with the stored one on the first sequences.
"""

import argparse
import sys
from fractions import Fraction
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

import revformers as rf
from revformers.benchmark.environment import write_result
from revformers.conversion.measure import mean_loss
from revformers.conversion.text import sampled_blocks


def batches(tokens: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Return int64[sequences, length] as batches of eight."""
    return [{"input_ids": batch} for batch in tokens.split(8)]


def main() -> None:
    """Measure every budget, print the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="directory or hub id of an ordinary causal language model")
    parser.add_argument("--bits", type=int, nargs="+", default=[6, 5, 4, 3, 2, 1, 0])
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the sampled text")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(options.model).eval()
    texts = {seed: sampled_blocks(model, options.sequences, options.length, seed) for seed in options.seeds}
    original = {seed: mean_loss(model, batches(text)) for seed, text in texts.items()}
    rows = []
    for bits in options.bits:
        for sign in (1, -1):
            dynamics = rf.BlendedMidpoint(Fraction(sign, 2**bits))
            rf.make_reversible(model, dynamics)
            increase = {seed: mean_loss(model, batches(text)) - original[seed] for seed, text in texts.items()}
            report = rf.verify_gradients(model, {"input_ids": texts[options.seeds[0]][:4]})
            rows.append(
                {
                    "bits": dynamics.side_information_bits(0),
                    "blend": str(dynamics.blend),
                    "loss_increase_by_seed": increase,
                    "gradients_bit_exact": report.bit_exact,
                }
            )
            rf.make_residual(model)
    table = Table(title=f"Zero-shot loss increase (nats); original {sum(original.values()) / len(original):.4f}")
    for heading in ("bits", "blend", "mean increase", "largest increase", "gradients"):
        table.add_column(heading, justify="right")
    for row in rows:
        values = list(row["loss_increase_by_seed"].values())
        exact = "bit-exact" if row["gradients_bit_exact"] else "DIFFER"
        table.add_row(str(row["bits"]), row["blend"], f"{sum(values) / len(values):+.4f}", f"{max(values):+.4f}", exact)
    Console().print(table)
    write_result(
        options.output,
        {
            "model": Path(options.model).name,
            "sequences": options.sequences,
            "length": options.length,
            "original_loss_by_seed": original,
            "rows": rows,
        },
        sys.argv[1:],
        program="python benchmarks/zero_shot_fidelity.py",
    )


if __name__ == "__main__":
    main()
