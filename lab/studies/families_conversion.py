"""Converts, verifies, generates with and evaluates one small model of each of five families by the same commands.

    python -m lab.studies.families_conversion --output RESULT.json [--data DIRECTORY]

The models are briefly trained as ordinary networks on the source of Python's standard library, so that their weights
are not random. The evaluation needs the directory with the local tasks' files of `python -m lab evaluate` and is left
out without it.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoTokenizer

import revformers as rf
from lab.bench.environment import output_file, write_result
from lab.command import as_command
from revformers.cli.main import main as revformers
from revformers.training.console import command_console
from revformers.training.titled_table import TitledTable

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24},
    "gpt2": {"n_head": 4},
    "gpt_neox": {"intermediate_size": 384, "num_attention_heads": 4},
    "mixtral": {
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
    },
    "gemma2": {
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "query_pre_attn_scalar": 24,
        "sliding_window": 64,
    },
}
SHAPE = {"hidden_size": 96, "num_hidden_layers": 6, "max_position_embeddings": 256, "initializer_range": 0.08}
PROMPT = "def __init__(self"


def command(*words: str) -> None:
    """Run a revformers command; stop the study if it fails."""
    if revformers(list(words)) != 0:
        raise SystemExit(f"revformers {' '.join(words)} failed.")


def train(family: str, folder: Path, steps: int) -> None:
    """Train a small model of the family as an ordinary network, into folder/run/model."""
    recipe = {
        "model": {"architecture": family, "config": SHAPE | FAMILIES[family]},
        "dynamics": {"name": "residual", "activations": "store"},
        "data": {"source": "stdlib", "vocabulary_size": 1024, "block_length": 128, "validation_blocks": 32},
        "training": {
            "max_steps": steps,
            "per_device_train_batch_size": 4,
            "learning_rate": 2e-3,
            "warmup_steps": 0.1,
            "eval_steps": steps,
            "save_steps": steps,
            "logging_steps": max(1, steps // 4),
            "arguments": {"use_cpu": True},
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    command("pretrain", str(folder / "recipe.yaml"), "--output", str(folder / "run"))


def study(family: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train, convert, reload, generate and evaluate one family, and return the measurements."""
    train(family, folder, options.steps)
    original, converted = folder / "run" / "model", folder / "converted"
    sizes = ["--sequences", str(options.sequences), "--length", "128", "--held_out", "32"]
    command(
        *["convert", str(original), "--calibration", "stdlib", "--out", str(converted)],
        *["--bits", "1", "--compare", "0", "2", *sizes],
    )
    conversions = json.loads((converted / "conversion.json").read_text(encoding="utf-8"))
    model = rf.from_pretrained(converted).eval()
    tokenizer = AutoTokenizer.from_pretrained(converted)
    prompt = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False)
    texts = [
        model.generate(**prompt, max_new_tokens=24, do_sample=False, use_cache=cached, pad_token_id=0)
        for cached in (True, False)
    ]
    result = {
        "family": family,
        "parameters": model.num_parameters(),
        "original_loss": conversions[0]["original_loss"],
        "loss_by_bits": {f"{row['bits']:g}": row["loss"] for row in conversions},
        "gradients_bit_exact": rf.verify_gradients(model, {"input_ids": prompt["input_ids"].repeat(2, 4)}).bit_exact,
        "cached_and_uncached_text_equal": torch.equal(*texts),
        "sample": tokenizer.decode(texts[0][0]),
    }
    if options.data is not None:
        scores = folder / "scores.json"
        command(
            *["evaluate", str(converted), "--against", str(original), "--tasks", "local_piqa"],
            *["--data", str(options.data), "--limit", str(options.limit), "--out", str(scores)],
        )
        result["evaluation"] = json.loads(scores.read_text(encoding="utf-8"))
    return result


def main() -> None:
    """Study every family, print the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--steps", type=int, default=400, help="training steps of 4 x 128 tokens")
    parser.add_argument("--sequences", type=int, default=64, help="calibration sequences of 128 tokens")
    parser.add_argument("--data", type=Path, help="directory of the local tasks of python -m lab evaluate")
    parser.add_argument("--limit", type=int, default=100, help="documents to evaluate on")
    parser.add_argument("--output", type=output_file, required=True)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="revformers-") as folder:
        os.environ.setdefault("REVFORMERS_CACHE", str(Path(folder) / "cache"))
        for family in options.families:
            (Path(folder) / family).mkdir()
            rows.append(study(family, options, Path(folder) / family))
    table = TitledTable(
        left=("family",), right=("original", "2 bits", "1 bit", "0 bits", "gradients", "text with and without cache")
    )
    for row in rows:
        losses = row["loss_by_bits"]
        table.add(
            row["family"],
            f"{row['original_loss']:.4f}",
            *(f"{losses[bits] / row['original_loss'] - 1:+.2%}" for bits in ("2", "1", "0")),
            "equal to the bit" if row["gradients_bit_exact"] else "DIFFER",
            "equal" if row["cached_and_uncached_text_equal"] else "DIFFERS",
        )
    write_result(options.output, {"rows": rows}, sys.argv[1:], program="python -m lab.studies.families_conversion")
    command_console().print(table)


if __name__ == "__main__":
    as_command(main)
