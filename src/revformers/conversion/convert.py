"""Converting a pretrained model: blends from a bit budget, then the update predictor."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from revformers.conversion.fit import LayerFit, fit_update_predictors
from revformers.dynamics.blended_midpoint import BlendedMidpoint
from revformers.hf.discovery import find_stack
from revformers.hf.reversible import add_update_predictors, make_residual, make_reversible
from revformers.hf.state import reversible_stack

MAXIMUM_BITS = 8


@dataclass(frozen=True)
class Conversion:
    """What a conversion came to.

    Attributes:
        bits: side information, in bits an element a layer, mean over the layers.
        dynamics: the blends, one per layer.
        original_loss: mean cross-entropy of the ordinary network on the calibration text, nats a token.
        loss: the same of the converted network, before any training.
        added_parameters: parameters of the update predictors.
        fits: how well each layer's predictor fits; empty without predictors.

    """

    bits: float
    dynamics: BlendedMidpoint
    original_loss: float
    loss: float
    added_parameters: int
    fits: tuple[LayerFit, ...]

    def __str__(self) -> str:
        """Say in a few lines what the conversion costs."""
        increase = self.loss / self.original_loss - 1
        lines = [
            f"converted at {self.bits:g} bits an element a layer",
            f"  loss on calibration text      {self.loss:.4f}, {increase:+.2%} on {self.original_loss:.4f}",
            f"  added parameters              {self.added_parameters:,}",
        ]
        if self.fits:
            worst = max(range(len(self.fits)), key=lambda layer: self.fits[layer].error)
            lines.append(
                f"  worst layer                   {worst}, next state off by {math.sqrt(self.fits[worst].error):.2%} "
                f"of its size"
            )
        return "\n".join(lines)


def convert(
    model: nn.Module,
    bits: float = 0,
    calibration: Sequence[Mapping[str, Tensor]] | Tensor | None = None,
    *,
    predictor: bool = True,
    progress: Callable[[int], None] = lambda layer: None,
) -> Conversion:
    """Make a pretrained model reversible with as little loss as a budget of side information allows, in place.

    Args:
        model: an ordinary causal language model of transformers.
        bits: side information in bits an element a layer, mean over the layers, from 0 to 8. Fractions are met by
            spreading layers of one bit more evenly over the depth.
        calibration: text that the predictors are fitted to and the losses are measured on: int64[sequences, tokens],
            or batches ``{"input_ids": int64[batch, tokens]}`` without padding.
        predictor: whether to fit update predictors; without them the blend alone is what changes the network.
        progress: called with the number of every layer that is fitted.

    Returns:
        What the conversion costs. The model then trains, saves and loads as a reversible model.

    Raises:
        NotReversibleError: where the model is no plain fold over its layers.
        ValueError: for bits out of range, no calibration text, or a model that is reversible already.

    """
    if reversible_stack(model) is not None:
        raise ValueError("The model is reversible already; call revformers.make_residual(model) to convert it anew.")
    dynamics = BlendedMidpoint(blends_of_budget(bits, len(find_stack(model).layers)))
    batches = _batches(calibration)
    mode = model.training
    model.eval()
    try:
        original_loss = mean_loss(model, batches)
        make_reversible(model, dynamics)
        fits: list[LayerFit] = []
        added = 0
        if predictor:
            predictors = add_update_predictors(model)
            added = sum(parameter.numel() for module in predictors for parameter in module.parameters())
            coefficients = [dynamics.coefficients(layer) for layer in range(len(predictors))]
            fits = fit_update_predictors(model, predictors, coefficients, batches, progress)
        loss = mean_loss(model, batches)
    except BaseException:
        # Half a conversion is of no use to anyone: the model is the ordinary network again.
        make_residual(model)
        raise
    finally:
        model.train(mode)
    return Conversion(float(bits), dynamics, original_loss, loss, added, tuple(fits))


def blends_of_budget(bits: float, number_of_layers: int) -> list[Fraction]:
    """Return one blend a layer, 2**-k each, whose side information is `bits` bits an element in the mean.

    Raises:
        ValueError: for a budget outside 0 to 8.

    """
    if isinstance(bits, bool) or not isinstance(bits, int | float) or not 0 <= bits <= MAXIMUM_BITS:
        raise ValueError(f"A budget of side information is a number of bits from 0 to {MAXIMUM_BITS}, not {bits!r}.")
    cumulative = [math.floor(bits * layer + 0.5) for layer in range(number_of_layers + 1)]
    return [Fraction(1, 2 ** (cumulative[layer + 1] - cumulative[layer])) for layer in range(number_of_layers)]


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> float:
    """Return the mean cross-entropy of the next token over all batches, nats a token, summed in float64."""
    total, tokens = 0.0, 0
    for batch in batches:
        targets = batch["input_ids"][:, 1:].flatten()
        logits = model(**batch).logits[:, :-1].flatten(0, 1)
        total += functional.cross_entropy(logits.float(), targets.to(logits.device), reduction="sum").double().item()
        tokens += targets.numel()
    return total / tokens


def _batches(calibration: Any) -> list[Mapping[str, Tensor]]:
    """Return the calibration text as batches, or raise ValueError where there is none."""
    if isinstance(calibration, Tensor):
        if calibration.dim() != 2 or calibration.numel() == 0 or calibration.shape[1] < 2:
            raise ValueError(
                f"Calibration text is int64[sequences, tokens] with two tokens or more a sequence, not "
                f"{list(calibration.shape)}."
            )
        return [{"input_ids": chunk} for chunk in calibration.split(8)]
    batches = list(calibration or [])
    if not batches:
        raise ValueError("There is no calibration text; the loss of a conversion can only be measured on some.")
    for batch in batches:
        mask = batch.get("attention_mask")
        if mask is not None and not bool(mask.bool().all()):
            raise ValueError("Calibration text must not be padded; pack it into blocks of one length.")
    return [{"input_ids": batch["input_ids"]} for batch in batches]
