"""``revformers convert MODEL --calibration FILE --out DIR``."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from revformers.cli.exit_codes import ended
from revformers.cli.help_text import wrapped_report
from revformers.cli.options import read_options
from revformers.cli.termination import Terminated
from revformers.data.section import DataSection
from revformers.errors import UserError, as_user_error, counted, require_package
from revformers.files import check_place

if TYPE_CHECKING:
    from revformers.conversion.convert import Method
    from revformers.conversion.report import Conversion
    from revformers.training.titled_table import TitledTable


FIGURES = "conversion.json"
"""The file of the figures beside the saved model."""


@dataclass(frozen=True)
class ConvertOptions:
    """Make a pretrained model reversible with as little loss as a budget of side information allows.

    Attributes:
        model: Directory or hub id of an ordinary causal language model, or a GGUF file, whose weights are dequantised.
        out: Directory to save the reversible model and its tokenizer to.
        calibration: Text to fit the update predictors to: stdlib, a .txt, .jsonl, .json or .parquet file, a directory
            of such files, or a hub data set.
        bits: Side information for the inverse, in bits per element and layer, averaged over the layers: 0 to 8. By
            default 2, unless target_loss_increase is given.
        target_loss_increase: Largest increase of the held-out loss, such as 0.5%, instead of bits; the conversion uses
            the smallest budget that meets it.
        allocation: Allocation of the bits to layers: calibrated by the cost of each layer's blend, or uniform.
        predictor: Input of the update predictors: none (no predictors), the state, the state and the update, or these
            two and the previous layer's MLP or whole update. The last two cost a further evaluation; see added compute.
        rank: Rank of the update predictors; by default full rank.
        two_evaluations: Use the paper's own conversion, which evaluates two layers per step.
        states: Format of the states: int32, int64, or auto, which is int32 for layers in bfloat16 or float16 and under
            autocast. auto:14 gives 32-bit states at most 14 binary digits after the point; the conversion takes fewer
            if the model's states need more range.
        compare: Further budgets to convert at, for the table; the saved model is that of bits or target_loss_increase.
        curve: File (.svg or .png) for the curve of loss against memory over all budgets in the table.
        text_column: Column that holds the text in .jsonl, .json and .parquet files and hub data sets.
        add_bos_token: Whether a beginning-of-sequence token precedes every document, and the running text of .txt
            files: auto does what the tokenizer does with a text; always or never.
        sequences: Calibration sequences.
        length: Tokens in a sequence.
        held_out: Held-out sequences to measure the losses on.

    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    out: Path
    calibration: str
    bits: float | None = None
    target_loss_increase: str | None = None
    allocation: Literal["uniform", "calibrated"] = "calibrated"
    predictor: Literal["none", "state", "update", "previous_mlp", "previous_update"] = "state"
    rank: int | None = None
    two_evaluations: bool = False
    states: str = "auto"
    compare: tuple[float, ...] = ()
    curve: Path | None = None
    text_column: str = "text"
    add_bos_token: Literal["auto", "always", "never"] = "auto"
    sequences: int = 128
    length: int = 256
    held_out: int = 32


class CalibrationSection(DataSection):
    """The calibration text, whose settings are options."""

    def setting(self, field: str) -> str:
        """Return the option of a field; an empty text if there is none."""
        return {"source": "--calibration", "text_column": "--text_column"}.get(field, "")


def run(arguments: Sequence[str]) -> int:
    """Convert, print the costs, save, and return the exit code.

    Raises:
        FileNotFoundError: for missing text or a missing model.
        UserError: for any other mistake that the user can correct.
        NotReversibleError: for a model that is not a plain fold over its layers.

    """
    options = read_options(ConvertOptions, "revformers convert", arguments)
    if "--compare" in arguments and not options.compare:
        raise UserError("--compare takes the budgets to compare, such as --compare 1 3.")
    _refuse(options)
    # imported here, so that the help does not wait for PyTorch
    from revformers.checkpoints.load import load_causal_lm, load_tokenizer
    from revformers.cli.quiet import quiet_libraries
    from revformers.conversion.convert import Converter
    from revformers.data.blocks import calibration_blocks
    from revformers.data.tokenizer import check_vocabulary
    from revformers.engine.state_format import parse_states
    from revformers.files import write_json, written_whole
    from revformers.models.discovery import find_stack
    from revformers.models.parts import record_provenance, reversible_stack
    from revformers.models.provenance import Provenance
    from revformers.training.console import command_console, say, signs_of_life
    from revformers.training.conversion_progress import ConversionProgress

    quiet_libraries()
    console = command_console()
    target = None if options.target_loss_increase is None else _share(options.target_loss_increase)
    method = _method(options)
    data = CalibrationSection(
        source=options.calibration,
        text_column=options.text_column,
        block_length=options.length,
        add_bos_token=options.add_bos_token,
    )
    model = load_causal_lm(options.model).eval()
    if reversible_stack(model) is not None:
        raise UserError(f"{options.model} is already reversible; convert the ordinary model that it was made from.")
    tokenizer = load_tokenizer(options.model)
    check_vocabulary(model, tokenizer, "give a model with a tokenizer of its own")
    with signs_of_life(console, "preparing the text"):
        calibration, held_out = calibration_blocks(data, tokenizer, options.sequences, options.held_out)
    unfinished = _unfinished(options.out)
    converter: Converter | None = None
    try:
        with as_user_error(), ConversionProgress(console, len(find_stack(model).layers)) as progress:
            resolved, states = unfinished.resolve(), parse_states(options.states)
            converter = Converter(model, method, calibration, held_out, progress, resolved, states)
            if converter.resumable:
                say(console, f"Continuing the conversion in {unfinished}.")
            conversions = [converter.convert(bits) for bits in options.compare]
            conversions.append(
                converter.convert(_bits(options)) if target is None else converter.convert_to_target(target)
            )
        command = shlex.join(["revformers", "convert", *arguments])
        record_provenance(model, Provenance(made_by=command, source=options.calibration))
        _check_out(options.out)  # again: the directory may have been filled during the conversion
        with written_whole(options.out.resolve()) as directory:
            model.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
            write_json(directory / FIGURES, [_row(conversion) for conversion in conversions])
        converter.finish()
        if options.curve is not None:
            _draw(conversions, options.curve)
        console.print(_table(conversions))
        say(console, wrapped_report(str(conversions[-1])))
    except (KeyboardInterrupt, Terminated) as stop:
        word, code = ended(stop)
        left = converter is not None and converter.resumable
        if (options.out / FIGURES).is_file():
            remedy = f"; remove {unfinished}, which nothing needs" if left else ""
            say(console, f"{word}; the model is already saved in {options.out}{remedy}.")
        elif left:
            say(console, f"{word}; the same command continues from {unfinished}.")
        else:
            raise
        return code
    say(console, f"Saved to {options.out}.")
    if options.curve is not None:
        say(console, f"Curve in {options.curve}.")
    return 0


def _unfinished(out: Path) -> Path:
    """Return the directory of what an interrupted conversion to `out` continues from."""
    return out.with_name(f"{out.name}.unfinished")


def _refuse(options: ConvertOptions) -> None:
    """Raise UserError for mistakes that can be found before anything is loaded."""
    from revformers.conversion.allocation import check_budget
    from revformers.engine.state_format import parse_states

    if options.bits is not None and options.target_loss_increase is not None:
        raise UserError("Give only one of bits and target_loss_increase: the target determines the bits.")
    _check_out(options.out)
    if options.curve is not None:
        if options.curve.suffix not in (".svg", ".png"):
            raise UserError(f"A curve is drawn as .svg or .png, not {options.curve.name}.")
        if not options.compare:
            raise UserError("--curve draws the budgets of --compare; give some, such as --compare 1 3.")
        require_package("matplotlib", "plot", "--curve")
        check_place(options.curve)
    for name in ("sequences", "held_out", "length"):
        if getattr(options, name) < (2 if name == "length" else 1):
            raise UserError(f"{name} must be at least {2 if name == 'length' else 1}.")
    with as_user_error():
        for bits in (*options.compare, _bits(options)):
            check_budget(bits)
        parse_states(options.states)


def _check_out(out: Path) -> None:
    """Raise UserError if the model cannot be saved to `out`, or would replace other files there."""
    for directory in (out, _unfinished(out.absolute())):
        check_place(directory, directory=True)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"The directory {out} is not empty; choose another one.")
    if out.resolve() == Path.cwd():
        raise UserError("The model cannot replace the current directory; choose a directory below it.")


def _bits(options: ConvertOptions) -> float:
    from revformers.conversion.allocation import USUAL_BITS

    return USUAL_BITS if options.bits is None else options.bits


def _share(text: str) -> float:
    """Return 0.005 for "0.5%" and for "0.005"."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise UserError(f"A loss increase is written 0.5% or 0.005, not {text!r}.") from None


def _method(options: ConvertOptions) -> "Method":
    from revformers.conversion.convert import Method
    from revformers.models.update_predictor import predictor_form_of

    with as_user_error():
        form = predictor_form_of(options.predictor, options.rank)
        return Method(options.allocation, form, two_evaluations=options.two_evaluations)


def _row(conversion: "Conversion") -> dict[str, Any]:
    """Return the figures of a conversion as values for JSON."""
    names = (
        "bits",
        "original_loss",
        "loss",
        "predicted_loss",
        "loss_increase",
        "added_parameters",
        "added_compute",
        "total_bits",
        "layer_bits",
        "side_information",
        "states",
        "largest_magnitude",
        "checkpoints",
    )
    return {
        "dynamics": conversion.dynamics.to_dict(),
        **{name: getattr(conversion, name) for name in names},
        "state_format": str(conversion.state_format),
        "explained_by_layer": [fit.explained for fit in conversion.fits],
    }


def _table(conversions: Sequence["Conversion"]) -> "TitledTable":
    """Return the table of the costs of each budget."""
    from revformers.training.titled_table import TitledTable

    table = TitledTable(
        caption="bits: per element, averaged over the layers and in total; loss: on held-out text; kept: bytes per "
        "token, of side information and the two states, and their share of what checkpointing keeps",
        right=("bits", "total", "loss", "increase", "weights", "compute", "kept", "share"),
    )
    for row in sorted(conversions, key=lambda conversion: conversion.bits):
        table.add(
            f"{row.bits:.3g}",
            f"{row.total_bits:g}",
            f"{row.loss:.4f}",
            f"{row.loss_increase:+.2%}",
            f"{row.added_parameters:+,}",
            f"{row.added_compute:+.1%}",
            f"{row.kept:,.0f}",
            f"{row.kept / row.checkpoints:.0%}",
        )
    return table


def _draw(conversions: Sequence["Conversion"], file: Path) -> None:
    """Draw the loss increase over the memory kept for the backward pass, relative to checkpointing."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    rows = sorted(conversions, key=lambda conversion: conversion.bits)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    memory = [row.kept / row.checkpoints for row in rows]
    axes.plot(memory, [row.loss_increase for row in rows], marker="o")
    for row, x in zip(rows, memory, strict=True):
        axes.annotate(counted(row.bits, "bit"), (x, row.loss_increase), textcoords="offset points", xytext=(6, 6))
    axes.set(
        xlabel="kept for the backward pass, share of what checkpointing keeps",
        ylabel="held-out loss increase, before any training",
    )
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.margins(0.12)  # room for the labels
    axes.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
