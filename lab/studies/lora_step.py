"""Measures peak memory and time of a LoRA step on a real model: storing, checkpointing and rebuilding.

    python -m lab.studies.lora_step MODEL CONVERTED --output RESULT.json

The ordinary network trains in transformers' own ways: with stored activations, with checkpointing, and with the
checkpoints in host memory. The converted one trains under each of this library's policies. Every arm has the same
adapters on the same modules (none in the update predictors), the same batches and the same head loss. The peak is the
memory of a forward and backward pass above weights, adapters and their gradients; times are ratios within a round.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

import revformers as rf
from lab.bench.arm_names import ORDINARY_ARMS, ORDINARY_CHECKPOINT
from lab.bench.environment import output_file, write_result
from lab.bench.meter import peak_allocated_bytes
from lab.bench.numbers import mebibytes
from lab.bench.step_time import measure_step_times
from lab.command import as_command
from revformers.checkpoints.load import load_causal_lm
from revformers.head.loss import HeadLoss, set_head_loss
from revformers.training.console import command_console
from revformers.training.deployment import leave_out_predictors
from revformers.training.titled_table import TitledTable

LABELS = {
    "plain_store": "ordinary, store",
    "plain_checkpoint": "ordinary, checkpoint",
    "plain_offload": "ordinary, checkpoints in host memory",
    **{name: f"converted, {name}" for name in ("store", "checkpoint", "offload", "rebuild")},
}
FEW_TOKENS = 16


def adapted(model: Any, rank: int) -> Any:
    """Return the PEFT model around `model` that every arm trains, with the loss function of every arm."""
    torch.manual_seed(0)
    config = LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    leave_out_predictors(model, config)
    set_head_loss(model, HeadLoss())
    return get_peft_model(model, config).train()


def switch(models: dict[bool, Any], arm: str) -> Any:
    """Return the model of an arm, set up for that arm."""
    ordinary = arm in ORDINARY_ARMS
    model = models[ordinary]
    if ordinary:
        ORDINARY_ARMS[arm].apply(model.get_base_model())
    else:
        rf.set_activations(model, arm)
    return model


def batch(number: int, tokens: int, vocabulary: int) -> dict[str, torch.Tensor]:
    """Return one sequence of random tokens; `number` chooses which."""
    ids = torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(number))
    return {"input_ids": ids, "labels": ids}


def measure(models: dict[bool, Any], arms: Sequence[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return peak, times and the loss of the first batch of every arm."""
    vocabulary = models[True].config.vocab_size
    losses: dict[str, float] = {}

    def step_of(arm: str) -> Callable[..., None]:
        def step(number: int, tokens: int = options.length) -> None:
            loss = models[arm in ORDINARY_ARMS](**batch(number, tokens, vocabulary)).loss
            loss.backward()
            if number == 0 and tokens == options.length:
                losses[arm] = loss.item()

        return step

    steps = {arm: step_of(arm) for arm in arms}
    peaks = {}
    for arm, step in steps.items():
        switch(models, arm)
        step(0, FEW_TOKENS)  # creates the gradients, which persist
        peaks[arm] = peak_allocated_bytes(partial(step, 0), torch.device("cpu"))
    times = measure_step_times(
        steps, options.rounds, warm_up_rounds=1, before_step=lambda arm, number: switch(models, arm)
    )
    return [
        {
            "arm": arm,
            "way": LABELS[arm],
            "peak": peaks[arm],
            "loss": losses[arm],
            "seconds": dataclasses.asdict(times.summary(arm)),
            "time_over_checkpoint": dataclasses.asdict(times.ratio(arm, ORDINARY_CHECKPOINT)),
        }
        for arm in arms
    ]


def table(rows: Sequence[dict[str, Any]], tokens: int) -> TitledTable:
    """Return the table of all arms."""
    result = TitledTable(f"A LoRA step on {tokens:,} tokens", left=("arm",), right=("peak", "time over checkpointing"))
    for row in rows:
        ratio = row["time_over_checkpoint"]
        spread = f"{ratio['median']:.2f} ({ratio['lower']:.2f} to {ratio['upper']:.2f})"
        result.add(row["way"], mebibytes(row["peak"]), spread)
    return result


def main() -> None:
    """Measure every arm, print the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="directory or hub id of an ordinary causal language model")
    parser.add_argument("converted", help="directory of the reversible model that it was converted to")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a step")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--arms", nargs="+", default=list(LABELS), choices=LABELS)
    parser.add_argument("--output", type=output_file, required=True)
    options = parser.parse_args()
    if ORDINARY_CHECKPOINT not in options.arms:
        parser.error(f"--arms needs {ORDINARY_CHECKPOINT}, the reference of the times.")
    models = {
        True: adapted(load_causal_lm(options.model), options.rank),
        False: adapted(rf.from_pretrained(options.converted), options.rank),
    }
    rows = measure(models, options.arms, options)
    base = models[True].get_base_model()
    result = {
        "model": Path(options.model).name,
        "dtype": str(base.dtype).removeprefix("torch."),
        "tokens": options.length,
        "rank": options.rank,
        "bits": rf.describe(models[False]).bits,
        "weights": sum(parameter.numel() * parameter.element_size() for parameter in base.parameters()),
        "rows": rows,
    }
    write_result(options.output, result, sys.argv[1:], program="python -m lab.studies.lora_step")
    command_console().print(table(rows, options.length))


if __name__ == "__main__":
    as_command(main)
