"""Measures what 32-bit states cost in loss, against 64-bit states of the same network.

    python -m lab.studies.state_loss MODEL --training TRAIN.txt --validation VALID.txt --output RESULT.json

Three parts. The model is converted in bfloat16, and its held-out loss is measured in every format, down to binary
points that are too coarse. The converted model is fine-tuned, in float32 under autocast, once in each format on the
same batches. Small networks that read bytes are trained from scratch in both formats, with the same initial weights and
batches for each seed. The other seeds show what a difference in the last digits may come to in training.
"""

import argparse
import copy
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import revformers as rf
from lab.bench.environment import output_file, write_result
from lab.bench.short_training import mean_loss, train_in_turns
from lab.bench.workload import MeasuredWorkload, llama_config
from lab.command import as_command
from revformers.checkpoints.load import load_causal_lm, load_tokenizer
from revformers.conversion import measure
from revformers.conversion.convert import Converter, Method
from revformers.data.blocks import calibration_blocks
from revformers.data.section import DataSection
from revformers.head.loss import apply_head
from revformers.models.parts import require_reversible
from revformers.training.console import command_console
from revformers.training.titled_table import TitledTable

METHOD = Method(allocation="uniform", predictor=None)
"""Blends alone, whose conversion takes seconds; what is measured is what the format changes in the same network."""

FORMATS = ("int64", "auto")
"""The formats of the trainings; auto has 32 bits there, and the binary point that a conversion chose."""

POINTS = (16, 12, 8)
"""Binary points whose loss is measured beside the one that the conversion chooses."""


def converted_losses(
    model: PreTrainedModel, text: Tensor, held_out: Tensor, bits: Sequence[float]
) -> tuple[list[dict[str, Any]], PreTrainedModel]:
    """Return the held-out losses of the model at every budget, and the model, converted at the last of them."""
    rows, converter, batches = [], Converter(model, METHOD, text, held_out), [{"input_ids": held_out}]
    for budget in bits:
        conversion = converter.convert(budget)
        chosen, losses = conversion.state_format, {}
        chosen_point = chosen.in_32_bits.fraction_bits
        for states in ("int64", *(f"auto:{point}" for point in sorted({*POINTS, chosen_point}, reverse=True))):
            rf.set_states(model, states)
            try:
                losses[states] = measure.mean_loss(model, batches)
            except rf.StateRangeError:
                losses[states] = math.nan
        rf.set_states(model, chosen)
        rows.append(
            {
                "bits": budget,
                "chosen": f"auto:{chosen_point}",
                "largest_magnitude": conversion.largest_magnitude,
                "loss_by_format": {name: None if math.isnan(loss) else loss for name, loss in losses.items()},
            }
        )
    return rows, model


def trained_losses(
    models: dict[str, PreTrainedModel],
    batches: Sequence[dict[str, Tensor]],
    held_out: Sequence[dict[str, Tensor]],
    learning_rate: float,
) -> dict[str, Any]:
    """Train the same network in every format in turns, under autocast, and return the losses by format."""
    workload = MeasuredWorkload({"model_type": "llama"}, precision="bfloat16_autocast")
    for states, model in models.items():
        if states == "int64":
            rf.set_states(model, states)
        rf.set_activations(model, "store")  # the same gradients as rebuilding, to the bit, in less time
        apply_head(model, "auto")
    before = {states: mean_loss(workload, model, held_out) for states, model in models.items()}
    training = train_in_turns(workload, models, batches, learning_rate)
    formats = {str(states): str(require_reversible(model).fixed_point) for states, model in models.items()}
    assert "32-bit" in formats["auto"], "autocast"
    return {
        "before": before,
        "after": {states: mean_loss(workload, model, held_out) for states, model in models.items()},
        "curves": training.losses,
    }


def batches_of(rows: Tensor, size: int, seed: int) -> list[dict[str, Tensor]]:
    """Return the rows in batches, in an order by the seed."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": chunk, "labels": chunk} for chunk in rows[order].split(size)]


def fine_tuned(model: PreTrainedModel, text: Tensor, held_out: Tensor, options: argparse.Namespace, seed: int) -> Any:
    """Fine-tune copies of a converted model in every format."""
    model = model.float()
    rows = text[: options.steps * options.batch, : options.fine_tuning_length]
    return {"seed": seed} | trained_losses(
        {states: copy.deepcopy(model).train() for states in FORMATS},
        batches_of(rows, options.batch, seed),
        batches_of(held_out, 1, 0),
        options.learning_rate,
    )


def from_scratch(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train a small network on the bytes of the text from the same fresh weights in every format."""
    length, size = options.scratch_length, options.scratch_batch
    config = llama_config(options.scratch_layers, options.scratch_width, 256, length)
    model = MeasuredWorkload(config, seed=seed).build_model()
    rf.make_reversible(model, rf.Midpoint())
    number = options.scratch_steps * size
    first = seed * number  # every seed has a stretch of text of its own
    return {"seed": seed} | trained_losses(
        {states: copy.deepcopy(model) for states in FORMATS},
        batches_of(bytes_of(options.training, length, first, number), size, seed),
        batches_of(bytes_of(options.validation, length, 0, 64), size, 0),
        options.scratch_learning_rate,
    )


def bytes_of(file: Path, length: int, first: int, number: int) -> Tensor:
    """Return `number` rows of the bytes of a file from row `first` on, int64[number, length]."""
    with file.open("rb") as opened:
        opened.seek(first * length)
        read = opened.read(number * length)
    if len(read) < number * length:
        raise SystemExit(f"{file} holds too little text for {first + number} rows of {length} bytes.")
    return torch.frombuffer(bytearray(read), dtype=torch.uint8).long().view(number, length)


def tables(result: dict[str, Any]) -> list[TitledTable]:
    """Return the tables of the three parts."""
    real = TitledTable(caption="held-out loss of the converted model", right=("bits", "states", "loss", "change"))
    for row in result["converted"]:
        losses = row["loss_by_format"]
        for states, loss in losses.items():
            figures = ("out of range", "-") if loss is None else (f"{loss:.5f}", f"{loss / losses['int64'] - 1:+.4%}")
            real.add(f"{row['bits']:g}", states + " (chosen)" * (states == row["chosen"]), *figures)
    found = [real]
    for part in ("fine-tuned", "from scratch"):
        table = TitledTable(caption=f"validation loss, {part}", right=("seed", *FORMATS, "change"))
        for row in result[part]:
            wide, narrow = (row["after"][states] for states in FORMATS)
            table.add(str(row["seed"]), f"{wide:.5f}", f"{narrow:.5f}", f"{narrow / wide - 1:+.3%}")
        losses = [row["after"]["int64"] for row in result[part]]
        if len(losses) > 1:
            table.add("spread", f"{max(losses) / min(losses) - 1:.3%}", "", "")
        found.append(table)
    return found


def main() -> None:
    """Measure the three parts, print the tables and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="directory of an ordinary causal language model")
    parser.add_argument("--training", type=Path, required=True, help="a text")
    parser.add_argument("--validation", type=Path, required=True, help="another text")
    parser.add_argument("--bits", type=float, nargs="+", default=[4, 2], help="the last one is fine-tuned")
    parser.add_argument("--sequences", type=int, default=4, help="to convert by")
    parser.add_argument("--held-out", type=int, default=8)
    parser.add_argument("--length", type=int, default=256, help="tokens in a sequence")
    parser.add_argument("--steps", type=int, default=24, help="of the fine-tuning")
    parser.add_argument("--batch", type=int, default=1, help="sequences in a step of it")
    parser.add_argument("--fine-tuning-length", type=int, default=128, help="tokens in each of them")
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--fine-tuning-seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings from scratch")
    parser.add_argument("--scratch-layers", type=int, default=8)
    parser.add_argument("--scratch-width", type=int, default=128)
    parser.add_argument("--scratch-length", type=int, default=128, help="bytes in a sequence")
    parser.add_argument("--scratch-batch", type=int, default=8)
    parser.add_argument("--scratch-steps", type=int, default=150)
    parser.add_argument("--scratch-learning-rate", type=float, default=2e-3)
    parser.add_argument("--output", type=output_file, required=True)
    options = parser.parse_args()

    model, tokenizer = load_causal_lm(options.model).to(torch.bfloat16).eval(), load_tokenizer(options.model)
    data = DataSection(
        source=str(options.training), validation_source=str(options.validation), block_length=options.length
    )
    steps = options.steps * options.batch
    text, held_out = calibration_blocks(data, tokenizer, options.sequences + steps, options.held_out)
    calibration, rest = text[: options.sequences], text[options.sequences :]
    names = [name for name in vars(options) if name not in ("model", "training", "validation", "output")]
    result: dict[str, Any] = {"model": Path(options.model).name} | {name: getattr(options, name) for name in names}
    console = command_console()
    result["converted"], model = converted_losses(model, calibration, held_out, options.bits)
    console.print(f"converted: {result['converted']}")

    def measure_part(name: str, run: Any, seeds: Sequence[int]) -> None:
        result[name] = []
        for seed in seeds:
            result[name].append(run(seed))
            console.print(f"{name}, seed {seed}: {result[name][-1]['after']}")
            # An interrupted study keeps its finished runs.
            write_result(options.output, result, sys.argv[1:], program="python -m lab.studies.state_loss")

    measure_part("fine-tuned", lambda seed: fine_tuned(model, rest, held_out, options, seed), options.fine_tuning_seeds)
    measure_part("from scratch", lambda seed: from_scratch(options, seed), options.seeds)
    for table in tables(result):
        console.print(table)


if __name__ == "__main__":
    as_command(main)
