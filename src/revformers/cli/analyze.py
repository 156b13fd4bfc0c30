"""``revformers analyze MODEL``."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from revformers.cli.dynamics_option import parse_dynamics
from revformers.cli.model_input import move, random_tokens, sequence_length, set_seed
from revformers.cli.options import read_options
from revformers.errors import UserError, as_user_error, counted, require_package
from revformers.files import check_place, write_text

if TYPE_CHECKING:
    from torch import Tensor

    from revformers.analysis import Analysis

DEFAULT_LENGTH = 32


@dataclass(frozen=True)
class AnalyzeOptions:
    """Measure how perturbations and rounding grow through the layers of a model, under several dynamics.

    Attributes:
        model: A directory, hub id or GGUF file of a causal language model, ordinary or reversible.
        dynamics: What to compare, such as midpoint leapfrog; options follow a colon, as in blended_midpoint:blend=1/4.
            By default the model's own, midpoint, leapfrog, a blend of 1/2, and hamiltonian where the branches of the
            layers are known.
        text: File of text to take the tokens from; by default they are random.
        length: Tokens; by default 32, or the model's maximum if that is smaller. The eigenvalues take some hundred
            evaluations of a layer.
        eigenvalues: Whether to find eigenvalues, which takes most of the time.
        layers: Numbers of the layers whose eigenvalues are found, from 0; by default five, from the first to the last.
        device: Device to compute on, such as cuda.
        seed: Seed of the random tokens and directions.
        json: File to also write the figures to; - prints them instead of the tables.
        plot: Directory for plots, as SVG files.

    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    dynamics: tuple[str, ...] = ()
    text: Path | None = None
    length: int | None = None
    eigenvalues: bool = True
    layers: tuple[int, ...] = ()
    device: str = "cpu"
    seed: int = 0
    json: str | None = None
    plot: Path | None = None


def run(arguments: Sequence[str]) -> int:
    """Print the analysis and return 0.

    Raises:
        FileNotFoundError: for a missing model or text.
        MissingPackageError: without scipy, or without matplotlib for --plot.
        NotReversibleError: for a model that does more than pass one state through its layers.
        UserError: for dynamics that do not exist or do not fit, a length or a layer out of range, or no such device.

    """
    options = read_options(AnalyzeOptions, "revformers analyze", arguments)
    require_package("scipy", "analyze", "revformers analyze")
    if options.plot:
        require_package("matplotlib", "analyze", "--plot")
    if options.layers and not options.eigenvalues:
        raise UserError(
            "--layers chooses layers for the eigenvalues, which --no_eigenvalues leaves out; give one of both."
        )
    if options.json and options.json != "-":
        check_place(Path(options.json))
    if options.plot:
        check_place(options.plot, directory=True)
    # imported here, so that the help does not wait for PyTorch
    from revformers.analysis import analyze
    from revformers.checkpoints.adapter import load_model_or_adapter
    from revformers.cli.quiet import quiet_libraries
    from revformers.training.console import command_console, signs_of_life

    quiet_libraries()
    set_seed(options.seed)
    dynamics = [parse_dynamics(text) for text in options.dynamics] or None
    model: Any = load_model_or_adapter(options.model).float()
    move(model, options.device)
    tokens = _tokens(options, model)
    layers: Sequence[int] | None = (options.layers or None) if options.eigenvalues else ()
    with as_user_error(), signs_of_life(command_console(stderr=True), "analysing"):
        analysis = analyze(model, {"input_ids": tokens}, dynamics=dynamics, layers=layers, seed=options.seed)
    written = json.dumps(analysis.to_dict(), indent=2, allow_nan=False) + "\n"
    if options.json and options.json != "-":
        write_text(Path(options.json), written)
    if options.plot:
        from revformers.cli.analyze_plot import draw

        draw(analysis, options.plot)
    if options.json == "-":
        print(written, end="")
    else:
        _show(analysis, f"random ones of seed {options.seed}" if options.text is None else f"from {options.text}")
    return 0


def _tokens(options: AnalyzeOptions, model: Any) -> "Tensor":
    """Return the tokens to analyse, int64[1, length], on the model's device."""
    import torch

    from revformers.checkpoints.load import load_tokenizer

    length = sequence_length(model, options.length, DEFAULT_LENGTH, least=1)
    if options.text is None:
        return random_tokens(model, 1, length)
    text = options.text.read_text(encoding="utf-8", errors="replace")
    ids = load_tokenizer(options.model)(text[: 40 * length], add_special_tokens=False)["input_ids"][:length]
    if len(ids) < length:
        raise UserError(f"{options.text} holds {len(ids)} tokens, fewer than --length {length}.")
    entries = model.get_input_embeddings().weight.shape[0]
    if max(ids) >= entries:
        raise UserError(
            f"{options.model!r} has {entries} tokens, and its tokenizer gives {max(ids)}; analyse random ones, without "
            f"--text."
        )
    return torch.tensor([ids]).to(options.device)


def _show(analysis: "Analysis", tokens: str) -> None:
    """Print the tables, where the tokens are from, and the verdict."""
    from revformers.cli.analyze_table import dynamics_table, spectrum_table
    from revformers.training.console import command_console

    console = command_console()
    if analysis.spectra:
        console.print(spectrum_table(analysis))
    console.print(dynamics_table(analysis))
    console.print(f"{counted(analysis.tokens, 'token')}, {tokens}. {analysis.verdict}")
