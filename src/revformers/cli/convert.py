"""``revformers convert MODEL --calibration FILE --out DIR``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from revformers.training.errors import RecipeError


@dataclass(frozen=True)
class ConvertOptions:
    """Make a pretrained model reversible with as little loss as a budget of side information allows."""

    model: tyro.conf.Positional[str]
    """Directory or hub id of an ordinary causal language model."""

    out: Path
    """Directory that the reversible model and its tokenizer are saved to."""

    calibration: str
    """Text to fit the update predictors to: stdlib, a .txt, .jsonl or .parquet file, or a hub data set."""

    bits: float = 0
    """Side information that the inverse may keep, in bits an element a layer, mean over the layers: 0 to 8."""

    predictor: bool = True
    """Whether to fit update predictors."""

    text_column: str = "text"
    """Column that holds the text in .jsonl and .parquet files and hub data sets."""

    sequences: int = 64
    """Calibration sequences."""

    length: int = 256
    """Tokens in a sequence."""

    held_out: int = 32
    """Held-out sequences that the losses are measured on."""


def run(arguments: Sequence[str]) -> int:
    """Convert, print what it costs, save, and return 0.

    Raises:
        FileNotFoundError: for text or a model that is not there.
        RecipeError: for whatever else the user can put right.
        NotReversibleError: for a model that is no plain fold over its layers.

    """
    options = tyro.cli(ConvertOptions, prog="revformers convert", args=list(arguments), use_underscores=True)
    # imported here, so that the help does not wait for PyTorch
    from rich.console import Console
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from revformers.cli.quiet import quiet_libraries
    from revformers.conversion.convert import blends_of_budget, convert, mean_loss
    from revformers.conversion.text import calibration_blocks
    from revformers.errors import NotReversibleError
    from revformers.training.recipe import DataSection

    quiet_libraries()
    console = Console()
    if options.out.exists() and any(options.out.iterdir()):
        raise RecipeError(f"The directory {options.out} is not empty; choose another one.")
    try:
        blends_of_budget(options.bits, 1)
        data = DataSection(source=options.calibration, text_column=options.text_column, block_length=options.length)
        model = AutoModelForCausalLM.from_pretrained(options.model).eval()
        tokenizer = AutoTokenizer.from_pretrained(options.model)
    except NotReversibleError:
        raise
    except ValueError as error:
        raise RecipeError(str(error)) from error
    vocabulary = model.config.get_text_config().vocab_size
    if len(tokenizer) > vocabulary:
        raise RecipeError(f"The tokenizer has {len(tokenizer)} tokens and the model {vocabulary}: they do not match.")
    calibration, held_out = calibration_blocks(data, tokenizer, options.sequences, options.held_out)
    batches = [{"input_ids": chunk} for chunk in held_out.split(8)]
    original = mean_loss(model, batches)
    try:
        with console.status("Fitting the update predictors") as status:
            conversion = convert(
                model,
                options.bits,
                calibration,
                predictor=options.predictor,
                progress=lambda layer: status.update(f"Fitted the update predictor of layer {layer}"),
            )
    except NotReversibleError:
        raise
    except ValueError as error:
        raise RecipeError(str(error)) from error
    loss = mean_loss(model, batches)
    width, layers = model.config.get_text_config().hidden_size, len(conversion.dynamics.to_dict()["blend"])
    side, checkpoint = options.bits * width * layers / 8, model.dtype.itemsize * width * layers
    console.print(str(conversion), highlight=False)
    console.print(
        f"  loss on held-out text         {loss:.4f}, {loss / original - 1:+.2%} of {original:.4f}\n"
        f"  kept for the backward pass    {side:,.0f} bytes a token over all layers; checkpointing keeps "
        f"{checkpoint:,.0f}",
        highlight=False,
    )
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    console.print(f"Saved to {options.out}.", highlight=False, soft_wrap=True)
    return 0
