"""What a conversion costs before any training: held-out loss against bits, with and without the update predictor.

    python benchmarks/conversion_loss.py MODEL --calibration TRAIN.txt --validation VALID.txt --output RESULT.json

Every seed fits the predictors to another stretch of the calibration text; the held-out text is the same.
"""

import argparse
import copy
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

import revformers as rf
from revformers.benchmark.environment import write_result
from revformers.conversion.convert import mean_loss
from revformers.training.data.packing import packed_blocks


def blocks(file: Path, tokenizer: object, length: int) -> torch.Tensor:
    """Return int64[blocks, length] of the running text in `file`."""
    return torch.stack(
        [torch.from_numpy(block) for block in packed_blocks([file.read_text("utf-8")], tokenizer, length, False)]
    )


def main() -> None:
    """Measure every budget, print the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="directory or hub id of an ordinary causal language model")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--bits", type=float, nargs="+", default=[6, 4, 3, 2, 1, 0])
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--held-out", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(options.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    calibration = blocks(options.calibration, tokenizer, options.length)
    held_out = [
        {"input_ids": chunk}
        for chunk in blocks(options.validation, tokenizer, options.length)[: options.held_out].split(8)
    ]
    original = mean_loss(model, held_out)
    console = Console()
    table = Table(title=f"Held-out loss after conversion; original {original:.4f}")
    for heading in ("bits", "blend alone", "with predictor (mean)", "lowest", "highest"):
        table.add_column(heading, justify="right")
    rows = []
    for bits in options.bits:
        alone = copy.deepcopy(model)
        rf.convert(alone, bits, calibration[:8], predictor=False)
        losses = {}
        for seed in options.seeds:
            converted = copy.deepcopy(model)
            start = seed * options.sequences
            rf.convert(converted, bits, calibration[start : start + options.sequences])
            losses[seed] = mean_loss(converted, held_out)
        exact = rf.verify_gradients(converted, {"input_ids": held_out[0]["input_ids"][:2]}).bit_exact
        row = {
            "bits": bits,
            "blend_alone": mean_loss(alone, held_out),
            "with_predictor_by_seed": losses,
            "gradients_bit_exact": exact,
        }
        rows.append(row)
        increases = [loss / original - 1 for loss in losses.values()]
        table.add_row(
            f"{bits:g}",
            f"{row['blend_alone'] / original - 1:+.2%}",
            f"{sum(increases) / len(increases):+.3%}",
            f"{min(increases):+.3%}",
            f"{max(increases):+.3%}",
        )
    console.print(table)
    write_result(
        options.output,
        {
            "model": Path(options.model).name,
            "calibration_tokens": options.sequences * options.length,
            "held_out_tokens": options.held_out * options.length,
            "original_loss": original,
            "rows": rows,
        },
        sys.argv[1:],
        program="python benchmarks/conversion_loss.py",
    )


if __name__ == "__main__":
    main()
