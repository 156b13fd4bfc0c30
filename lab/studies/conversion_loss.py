"""Measures the cost of a conversion before any training: held-out loss against bits, for every method.

    python -m lab.studies.conversion_loss MODEL --calibration TRAIN.txt --validation VALID.txt --output RESULT.json

Every seed uses another stretch of the calibration text; the held-out text is the same. Uniform blends and the two
evaluations without a predictor do not read it, and blends alone read it only for the bits of each layer. With
--instructions the calibration file holds records of instruction, input and output, which are concatenated; its first
third is held out.
"""

import argparse
import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import revformers as rf
from lab.bench.environment import output_file, write_result
from lab.command import as_command
from revformers.checkpoints.load import load_causal_lm, load_tokenizer
from revformers.conversion.convert import Converter, Method
from revformers.data.blocks import calibration_blocks
from revformers.data.section import DataSection
from revformers.models.update_predictor import predictor_form_of
from revformers.training.console import command_console
from revformers.training.finetune_data import FinetuneData, load_finetune_data, training_blocks
from revformers.training.finetune_recipe import FinetuneDataSection
from revformers.training.titled_table import TitledTable

ALL = (6, 4, 3, 2, 1, 0)


@dataclass(frozen=True)
class MeasuredMethod:
    """A method of converting, and what is measured of it.

    Attributes:
        method: the method.
        bits: the budgets to measure.
        text: length of its calibration text as a multiple of the other methods'.
        seeds: number of seeds to measure; None for all.

    """

    method: Method
    bits: tuple[float, ...] = ALL
    text: int = 1
    seeds: int | None = None


def predicted_by(name: Any, rank: int | None = None, **options: Any) -> Method:
    """Return the method with update predictors of this form."""
    return Method(predictor=predictor_form_of(name, rank), **options)


ARMS = {
    "blends alone, uniform": MeasuredMethod(predicted_by("none", allocation="uniform"), seeds=1),
    "blends alone": MeasuredMethod(predicted_by("none"), seeds=1),
    "two evaluations": MeasuredMethod(predicted_by("none", allocation="uniform", two_evaluations=True), seeds=1),
    "predictor on state": MeasuredMethod(predicted_by("state"), (*ALL, 1.5, 0.5)),
    "predictor on state, uniform blends": MeasuredMethod(predicted_by("state", allocation="uniform"), (2, 1), seeds=1),
    "predictor on state, four times the text": MeasuredMethod(predicted_by("state"), (2, 1, 0), text=4, seeds=1),
    "predictor on update": MeasuredMethod(predicted_by("update"), (2, 1, 0), seeds=1),
    "predictor on update, rank 3/8": MeasuredMethod(predicted_by("update", 3), (2, 1, 0), seeds=1),
    "predictor on previous MLP": MeasuredMethod(predicted_by("previous_mlp"), (2, 1, 0), seeds=1),
}
"""The ranks are given in eighths of the width."""


def method_for(measured: MeasuredMethod, width: int) -> Method:
    """Return the method with its rank in absolute units."""
    form = measured.method.predictor
    if form is None or form.rank is None:
        return measured.method
    name = form.features[-1]
    method = measured.method
    return Method(method.allocation, predictor_form_of(name, form.rank * width // 8))


def main() -> None:
    """Measure every arm, print the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="directory or hub id of an ordinary causal language model")
    parser.add_argument("--calibration", required=True, help="stdlib, or a file as for revformers convert")
    parser.add_argument("--validation", help="file with the held-out text; default: a part of the source")
    parser.add_argument("--instructions", action="store_true", help="the calibration file holds instructions")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--bits", type=float, nargs="+", help="budgets to measure, if the arm has them; default: all")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--held-out", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=output_file, required=True)
    options = parser.parse_args()

    model = load_causal_lm(options.model).eval()
    tokenizer = load_tokenizer(options.model)
    most = max(ARMS[name].text * (max(options.seeds[: ARMS[name].seeds]) + 1) for name in options.arms)
    calibration, held_out = texts(options, tokenizer, most * options.sequences)
    console, rows = command_console(), []
    for name in options.arms:
        arm = ARMS[name]
        method = method_for(arm, model.config.get_text_config().hidden_size)
        budgets = [bits for bits in arm.bits if options.bits is None or bits in options.bits]
        number = arm.text * options.sequences
        found: dict[float, dict[int, Any]] = {bits: {} for bits in budgets}
        for seed in options.seeds[: arm.seeds]:
            text = calibration[seed * number : (seed + 1) * number]
            if len(text) < number:
                raise SystemExit(f"{options.calibration} holds too little text for seed {seed}.")
            converter = Converter(model, method, text, held_out)
            for bits in budgets:
                conversion = converter.convert(bits)
                exact = rf.verify_gradients(model, {"input_ids": held_out[:2, :64]}).bit_exact
                found[bits][seed] = (conversion, exact)
                console.print(f"{name}, {bits:g} bits, seed {seed}: {conversion.loss_increase:+.3%}")
            rf.make_residual(model)
        rows += [row(name, number * options.length, bits, by_seed) for bits, by_seed in found.items()]
        write(rows, held_out.numel(), options)
    console.print(table(rows))


def texts(options: argparse.Namespace, tokenizer: Any, sequences: int) -> tuple[Tensor, Tensor]:
    """Return the calibration text and the held-out text, int64[sequences, length]."""
    if not options.instructions:
        data = DataSection(
            source=options.calibration, validation_source=options.validation, block_length=options.length
        )
        return calibration_blocks(data, tokenizer, sequences, options.held_out)
    columns = {"prompt": "{instruction}\n{input}\n\n", "completion": "output"}
    section = FinetuneDataSection(source=options.calibration, columns=columns, validation_fraction=1 / 3)
    records = load_finetune_data(section, tokenizer)
    reversed_roles = FinetuneData(records.form, records.validation, records.training)
    calibration = training_blocks(records, tokenizer, sequences, options.length)
    return calibration, training_blocks(reversed_roles, tokenizer, options.held_out, options.length)


def write(rows: list[dict[str, Any]], held_out_tokens: int, options: argparse.Namespace) -> None:
    """Write the rows so far, so that an interrupted study keeps its finished arms."""
    result = {
        "model": Path(options.model).name,
        "held_out_tokens": held_out_tokens,
        "original_loss": rows[0]["original_loss"],
        "rows": [{key: value for key, value in row.items() if key != "original_loss"} for row in rows],
    }
    write_result(options.output, result, sys.argv[1:], program="python -m lab.studies.conversion_loss")


def row(name: str, tokens: int, bits: float, by_seed: dict[int, Any]) -> dict[str, Any]:
    """Return the figures of one arm at one budget."""
    conversions = {seed: conversion for seed, (conversion, _) in by_seed.items()}
    first = next(iter(conversions.values()))
    return {
        "arm": name,
        "bits": bits,
        "calibration_tokens": tokens,
        "original_loss": first.original_loss,
        "loss_by_seed": {seed: conversion.loss for seed, conversion in conversions.items()},
        "increase_by_seed": {seed: conversion.loss_increase for seed, conversion in conversions.items()},
        "predicted_increase_by_seed": {
            seed: conversion.predicted_loss / conversion.original_loss - 1
            for seed, conversion in conversions.items()
            if conversion.predicted_loss is not None
        },
        "blends_by_seed": {seed: conversion.dynamics.to_dict()["blend"] for seed, conversion in conversions.items()},
        "added_parameters": first.added_parameters,
        "added_compute": first.added_compute,
        "share_of_checkpoints": first.side_information / first.checkpoints,
        "share_of_states": first.side_information / first.states,
        "error_by_layer": [math.sqrt(fit.error) for fit in first.fits],
        "explained_by_layer": [fit.explained for fit in first.fits],
        "gradients_bit_exact": all(exact for _, exact in by_seed.values()),
    }


def table(rows: list[dict[str, Any]]) -> TitledTable:
    """Return the table of all arms and budgets."""
    result = TitledTable(
        f"Held-out loss increase after conversion; original {rows[0]['original_loss']:.4f}",
        left=("arm",),
        right=("bits", "mean", "lowest", "highest", "compute"),
    )
    for entry in rows:
        increases = list(entry["increase_by_seed"].values())
        result.add(
            entry["arm"],
            f"{entry['bits']:g}",
            *(f"{figure:+.3%}" for figure in (statistics.mean(increases), min(increases), max(increases))),
            f"{entry['added_compute']:+.0%}",
        )
    return result


if __name__ == "__main__":
    as_command(main)
