"""The result of a conversion, as figures and as text."""

import math
from dataclasses import dataclass

from torch import nn

from revformers.conversion.fit import LayerFit
from revformers.dynamics.blended_midpoint import BlendedMidpoint
from revformers.engine.state_format import StateFormat
from revformers.errors import counted
from revformers.models.discovery import unwrap
from revformers.models.provenance import Provenance, hub_id

NOTABLE_INCREASE = 0.01
"""Loss increase, as a fraction of the original's loss, above which a conversion warns."""

TOKENS_PER_FEATURE = 16
"""Calibration tokens per number that a predictor reads, below which a remark says that they are few."""

MASSIVE_TOKEN = 100
"""Size of a token's state, relative to the median token's, above which a remark mentions it."""


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion. Losses are mean cross-entropies before any training, in nats per token.

    They are measured on the held-out text if there is any, otherwise on the calibration text.

    Attributes:
        bits: side information in bits per element and layer, averaged over the layers.
        dynamics: the blends, one per layer.
        original_loss: loss of the ordinary network.
        loss: loss of the converted network.
        predicted_loss: loss predicted from the costs of the blends, measured layer by layer; None if not measured.
        calibration_tokens: tokens of the calibration text.
        held_out_tokens: tokens of the held-out text; 0 without held-out text.
        added_parameters: parameters of the update predictors.
        added_compute: operations that the conversion adds to a forward pass, as a fraction of the ordinary network's.
        side_information: bytes per token that the backward pass needs, over all layers.
        checkpoints: bytes per token that checkpointing stores: the input of every layer.
        states: bytes per token of the two states of the backward pass, for any depth.
        state_format: the format of the states.
        largest_magnitude: the largest of a state or an update on that text.
        fits: the quality of each layer's predictor; empty without predictors.
        features: numbers that each predictor is an affine function of; 0 without predictors.
        fitted_tokens: tokens that the predictors were fitted to.

    """

    bits: float
    dynamics: BlendedMidpoint
    original_loss: float
    loss: float
    predicted_loss: float | None
    calibration_tokens: int
    held_out_tokens: int
    added_parameters: int
    added_compute: float
    side_information: float
    checkpoints: int
    states: int
    state_format: StateFormat
    largest_magnitude: float
    fits: tuple[LayerFit, ...]
    features: int
    fitted_tokens: int

    @property
    def total_bits(self) -> float:
        """Side information in bits per element, summed over all layers."""
        return self.bits * len(self.layer_bits)

    @property
    def kept(self) -> float:
        """Bytes per token stored for the backward pass: side information and the two states."""
        return self.side_information + self.states

    @property
    def layer_bits(self) -> list[int]:
        """Side information in bits per element, layer by layer."""
        assert isinstance(self.dynamics.blend, tuple)
        return [self.dynamics.side_information_bits(layer) for layer in range(len(self.dynamics.blend))]

    @property
    def warning(self) -> str | None:
        """A sentence about the increase of the loss; None if it is not notable."""
        if self.loss_increase <= NOTABLE_INCREASE:
            return None
        return (
            f"The loss rises by {self.loss_increase:.1%}, more than {NOTABLE_INCREASE:.0%}: give more bits or more "
            f"calibration text, or heal the model by fine-tuning."
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        """Facts that users should know before they use the converted model, one sentence each."""
        found = [self.warning] if self.warning else []
        if self.features and self.fitted_tokens < TOKENS_PER_FEATURE * self.features:
            # The predictors are not fitted to the part of the text that is set aside.
            enough = math.ceil(TOKENS_PER_FEATURE * self.features * self.calibration_tokens / self.fitted_tokens)
            found.append(
                f"{self.fitted_tokens:,} tokens of calibration text, without those set aside to judge the fit, "
                f"are few for predictors that read {self.features:,} numbers each: give {enough:,} or more in all "
                f"(conversion.sequences, --sequences of convert)."
            )
        weak = sum(fit.explained < 0.5 for fit in self.fits)
        if weak:
            found.append(
                f"In {weak} of {len(self.fits)} layers the predictor explains less than half of what the blend takes "
                f"away, which costs loss at 2 bits and below."
            )
        massive = max((fit.largest_token for fit in self.fits), default=1.0)
        if massive > MASSIVE_TOKEN:
            found.append(
                f"A token's state is {massive:,.0f} times as large as the median token's; every token has the same "
                f"weight in the fit."
            )
        return tuple(found)

    @property
    def loss_increase(self) -> float:
        """The increase of the loss over the original's, as a fraction of it."""
        return self.loss / self.original_loss - 1

    def provenance(self, model: nn.Module) -> Provenance:
        """Return the record for the configuration and the card of the converted model."""
        held_out = self.held_out_tokens > 0
        return Provenance(
            base_model=hub_id(unwrap(model).config.name_or_path or ""),
            made_by=f"revformers.convert(model, bits={self.bits:g}, ...)",
            calibration_tokens=self.calibration_tokens,
            original_loss=None if held_out else self.original_loss,
            loss=None if held_out else self.loss,
            held_out_tokens=self.held_out_tokens or None,
            held_out_original_loss=self.original_loss if held_out else None,
            held_out_loss=self.loss if held_out else None,
            remarks=self.remarks,
        )

    def __str__(self) -> str:
        """Return the costs of the conversion in a few lines."""
        text = "held-out text   " if self.held_out_tokens else "calibration text"
        lines = [
            f"converted at {counted(self.bits, 'bit')} per element and layer, {self.total_bits:g} in total",
            f"  loss on {text}      {self.loss:.4f}, {self.loss_increase:+.2%} on {self.original_loss:.4f}",
        ]
        if self.predicted_loss is not None:
            lines.append(f"  estimate from layers' costs   {self.predicted_loss:.4f}")
        lines += [
            f"  added parameters              {self.added_parameters:,}",
            f"  added compute                 {self.added_compute:+.1%} of a forward pass",
            f"  kept for the backward pass    {self.side_information:,.0f} bytes per token beside the two states' "
            f"{self.states:,}; checkpointing keeps {self.checkpoints:,}",
            f"  states                        {self.state_format}; the largest magnitude is "
            f"{self.largest_magnitude:,.3g}",
        ]
        if self.fits:
            worst = max(range(len(self.fits)), key=lambda layer: self.fits[layer].error)
            lines.append(
                f"  worst layer                   {worst} (counted from 0): its next state is off by "
                f"{math.sqrt(self.fits[worst].error):.2%} of its size"
            )
        return "\n".join(lines + [f"  {remark}" for remark in self.remarks])
