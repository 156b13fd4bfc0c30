"""Converting a pretrained model: blends from a bit budget, then the update predictor."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerBase

from revformers.conversion.allocation import BlendCosts, check_budget, measure_blend_costs, uniform_blends
from revformers.conversion.calibration import Text, as_batches, read_text
from revformers.conversion.fit import LayerFit, Trajectory, fit_step_sizes, fit_update_predictors
from revformers.conversion.measure import Batch, mean_divergence, mean_loss, next_token_distributions
from revformers.dynamics.base import ONE
from revformers.dynamics.blended_midpoint import BlendedMidpoint
from revformers.dynamics.two_evaluation_midpoint import TwoEvaluationMidpoint
from revformers.hf.attach import add_update_predictors
from revformers.hf.discovery import find_stack, unwrap
from revformers.hf.hint import without_hint
from revformers.hf.provenance import Provenance, hub_id
from revformers.hf.quantization import keep_trainable
from revformers.hf.reversible import make_residual, make_reversible
from revformers.hf.state import record_provenance, require_reversible, reversible_stack, update_predictors
from revformers.update_predictor import PredictorForm, PredictorName, predictor_form_of

Allocation = Literal["uniform", "calibrated"]

MEASURED_TOKENS = 1024
"""Calibration tokens that the divergence from the original is measured on: every layer is measured several times."""

TARGET_BUDGETS = (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
"""Budgets that `Converter.convert_to_target` chooses from, bits an element a layer."""


@dataclass(frozen=True)
class Conversion:
    """What a conversion came to. Losses are mean cross-entropies before any training, nats a token.

    They are measured on the held-out text where there is some, otherwise on the calibration text.

    Attributes:
        bits: side information, in bits an element a layer, mean over the layers.
        dynamics: the blends, one per layer.
        original_loss: of the ordinary network.
        loss: of the converted network.
        predicted_loss: what the costs of the blends, measured layer by layer, predict for it; None for uniform blends.
        calibration_tokens: tokens of the calibration text.
        held_out_tokens: tokens of the held-out text, 0 without.
        added_parameters: parameters of the update predictors.
        added_compute: operations of a forward pass that the conversion adds, as a share of the ordinary network's.
        side_information: bytes that the backward pass keeps of a token, over all layers.
        checkpoints: bytes that checkpointing keeps of a token: the input of every layer.
        fits: how well each layer's predictor fits; empty without predictors.

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
    fits: tuple[LayerFit, ...]

    @property
    def loss_increase(self) -> float:
        """The increase of the loss over the original's, as a share of it."""
        return self.loss / self.original_loss - 1

    def provenance(self, model: nn.Module) -> Provenance:
        """Return what the config and the card of the converted model tell of it."""
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
        )

    def __str__(self) -> str:
        """Say in a few lines what the conversion costs."""
        text = "held-out text   " if self.held_out_tokens else "calibration text"
        lines = [
            f"converted at {self.bits:g} {'bit' if self.bits == 1 else 'bits'} per element and layer",
            f"  loss on {text}      {self.loss:.4f}, {self.loss_increase:+.2%} on {self.original_loss:.4f}",
        ]
        if self.predicted_loss is not None:
            lines.append(f"  predicted layer by layer      {self.predicted_loss:.4f}")
        lines += [
            f"  added parameters              {self.added_parameters:,}",
            f"  added compute                 {self.added_compute:+.1%} of a forward pass",
            f"  kept for the backward pass    {self.side_information:,.0f} bytes a token; checkpointing keeps "
            f"{self.checkpoints:,}",
        ]
        if self.fits:
            worst = max(range(len(self.fits)), key=lambda layer: self.fits[layer].error)
            lines.append(
                f"  worst layer                   {worst}, next state off by {math.sqrt(self.fits[worst].error):.2%} "
                f"of its size"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class Method:
    """How a model is converted, whatever the budget.

    Attributes:
        allocation: ``"uniform"`` gives every layer the same blend (up to one bit); ``"calibrated"`` spends the bits
            where they count, by the measured cost of every blend in every layer, and where there is no predictor
            fits a step size a layer as well. The calibrated blends are taken only if they bring the model nearer to
            the original's predictions than uniform ones.
        predictor: the form of the update predictors; None converts by the blends alone.
        trajectory: the states that the predictors are fitted on; see `fit.fit_update_predictors`.
        two_evaluations: use `TwoEvaluationMidpoint`, the paper's own way, in the place of `BlendedMidpoint`.

    """

    allocation: Allocation = "uniform"
    predictor: PredictorForm | None = field(default_factory=PredictorForm)
    trajectory: Trajectory = "converted"
    two_evaluations: bool = False

    def dynamics(self, blends: Sequence[Fraction], step_sizes: Sequence[float] | None = None) -> BlendedMidpoint:
        """Return the dynamics with these blends, one per layer."""
        kind = TwoEvaluationMidpoint if self.two_evaluations else BlendedMidpoint
        return kind(blends, 1.0 if step_sizes is None else step_sizes)


def convert(
    model: nn.Module,
    bits: float = 0,
    calibration: Text | None = None,
    *,
    held_out: Text | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text_column: str = "text",
    sequences: int = 128,
    length: int = 256,
    allocation: Allocation = "uniform",
    predictor: PredictorName | PredictorForm = "update",
    trajectory: Trajectory = "converted",
    two_evaluations: bool = False,
    progress: Callable[[int], None] = lambda layer: None,
) -> Conversion:
    """Make a pretrained model reversible with as little loss as a budget of side information allows, in place.

    Args:
        model: an ordinary causal language model of transformers.
        bits: side information in bits an element a layer, mean over the layers, from 0 to 8, fractions included.
        calibration: text that the predictors are fitted to, without padding. Tokens: int64[sequences, tokens], batches
            ``{"input_ids": int64[batch, tokens]}``, or a `datasets.Dataset` with a column ``input_ids``, each row of
            which is a sequence. Text: a list of strings, each a document; a `datasets.Dataset` with a column of text;
            or the path of a .txt, .jsonl, .json or .parquet file, or of a directory of such files. A string alone is
            always a path.
        held_out: text that the losses are measured on, in any of these forms; left out, on the calibration text.
        tokenizer: the model's own, which text needs; tokens need none.
        text_column: the column that holds the text of a data set or of a file of records.
        sequences: how many sequences of text or of a data set are read at most, of `calibration` and of `held_out`.
        length: tokens in a sequence of text: documents are written one after the other and cut into such blocks.
        allocation: ``"uniform"`` blends, or ``"calibrated"`` by what each costs; see `Method`.
        predictor: what the update predictors read, by name or form; ``"none"`` for the blends alone.
        trajectory: the states that the predictors are fitted on, ``"converted"`` or ``"original"``.
        two_evaluations: use `TwoEvaluationMidpoint` in the place of `BlendedMidpoint`.
        progress: called with the number of every layer that is fitted or measured.

    Returns:
        What the conversion costs. The model then trains, saves and loads as a reversible model.

    Raises:
        FileNotFoundError: for a path where there is nothing.
        NotReversibleError: where the model is no plain fold over its layers.
        ValueError: for bits out of range, no calibration text, text without a tokenizer or in no form that can be read,
            or a model that is reversible already.

    """
    form = predictor if isinstance(predictor, PredictorForm) else predictor_form_of(predictor)
    check_budget(bits)
    for name, value, least in (("sequences", sequences, 1), ("length", length, 2)):
        if value < least:
            raise ValueError(f"convert takes a {name} of at least {least}, not {value}.")
    tokens, held_out_tokens = (
        read_text(text, tokenizer, text_column, sequences, length) for text in (calibration, held_out)
    )
    return convert_by(
        model, Method(allocation, form, trajectory, two_evaluations), bits, tokens, held_out_tokens, progress
    )


def convert_by(
    model: nn.Module,
    method: Method,
    bits: float,
    calibration: Any,
    held_out: Any = None,
    progress: Callable[[int], None] = lambda layer: None,
) -> Conversion:
    """As `convert`, by a `Method`."""
    return Converter(model, method, calibration, held_out, progress).convert(bits)


class Converter:
    """Conversions of one model by one method, at any budget; what does not depend on the budget is measured once.

    Args:
        model: an ordinary causal language model of transformers.
        method: how to convert.
        calibration: as for `convert`.
        held_out: as for `convert`.
        progress: as for `convert`.

    Raises:
        NotReversibleError: where the model is no plain fold over its layers.
        ValueError: for no calibration text, or a model that is reversible already.

    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        calibration: Sequence[Batch] | Tensor | None,
        held_out: Sequence[Batch] | Tensor | None = None,
        progress: Callable[[int], None] = lambda layer: None,
    ) -> None:
        if reversible_stack(model) is not None:
            raise ValueError(
                "The model is reversible already; call revformers.make_residual(model) to convert it anew."
            )
        if unwrap(model).get_output_embeddings() is None:
            raise ValueError(
                f"{type(unwrap(model)).__name__} has no head that predicts tokens, by which a conversion is measured; "
                f"convert the language model, save it, and load that with the head that you need."
            )
        keep_trainable(model)  # before the first evaluation
        self._model = model
        self._method = method
        self._layers = len(find_stack(model).layers)
        self._batches = as_batches(calibration, model)
        self._held_out = as_batches(held_out, model) if held_out is not None else []
        self._judged = self._held_out or self._batches
        self._progress = progress
        self._costs: BlendCosts | None = None
        self._original_loss: float | None = None
        self._measured = _first_tokens(self._batches, MEASURED_TOKENS)
        self._predictions: list[Tensor] = []

    @without_hint()
    def convert(self, bits: float) -> Conversion:
        """Convert the model in place, starting from the ordinary network; it is ordinary again where this fails.

        Raises:
            ValueError: for bits out of range.

        """
        check_budget(bits)
        model, mode = make_residual(self._model), self._model.training
        model.eval()
        try:
            if self._original_loss is None:
                self._original_loss = mean_loss(model, self._judged)
                self._predictions = [next_token_distributions(model, batch) for batch in self._measured]
            operations = self._operations()
            candidates = [uniform_blends(bits, self._layers)]
            if self._method.allocation == "calibrated":
                candidates += self._calibrated_blends(bits)
            attempts = [
                self._attempt(blends) for index, blends in enumerate(candidates) if blends not in candidates[:index]
            ]
            best = min(attempts, key=lambda attempt: attempt.divergence)
            if best is not attempts[-1]:
                best.restore(model)
            conversion = self._conversion(best, operations)
            record_provenance(model, conversion.provenance(model))
            return conversion
        except BaseException:
            # Half a conversion is of no use to anyone: the model is the ordinary network again.
            make_residual(model)
            raise
        finally:
            model.train(mode)

    def convert_to_target(self, loss_increase: float) -> Conversion:
        """Convert with the smallest budget that keeps the loss within a share of the original's, in place.

        Budgets from `TARGET_BUDGETS` are tried by bisection, each with a conversion of its own, and judged by the loss
        on the held-out text (on the calibration text where there is none).

        Args:
            loss_increase: as a share of the original's loss; 0.005 is half a percent.

        Raises:
            ValueError: for a target that is not positive, or is not met with 8 bits; the model is ordinary then.

        """
        if not (math.isfinite(loss_increase) and loss_increase > 0):
            raise ValueError(f"A target for the loss increase is a positive share such as 0.005, not {loss_increase}.")
        low, high = 0, len(TARGET_BUDGETS) - 1
        while low < high:
            middle = (low + high) // 2
            if self.convert(TARGET_BUDGETS[middle]).loss_increase <= loss_increase:
                high = middle
            else:
                low = middle + 1
        conversion = self.convert(TARGET_BUDGETS[low])
        if conversion.loss_increase > loss_increase:
            make_residual(self._model)
            raise ValueError(
                f"{TARGET_BUDGETS[low]} bits increase the loss by {conversion.loss_increase:.2%}, which misses the "
                f"target of {loss_increase:.2%}; choose a larger one."
            )
        return conversion

    def _attempt(self, blends: Sequence[Fraction]) -> "_Attempt":
        """Give the model these blends, fit its predictors or, where it has none, its step sizes, and measure it."""
        model, method = self._model, self._method
        dynamics = method.dynamics(blends)
        make_reversible(model, dynamics)
        coefficients = [dynamics.coefficients(layer) for layer in range(self._layers)]
        fits: list[LayerFit] = []
        if method.predictor is not None:
            predictors = add_update_predictors(model, method.predictor)
            fits = fit_update_predictors(
                model, predictors, coefficients, self._batches, method.trajectory, self._progress
            )
        elif method.allocation == "calibrated":
            dynamics = method.dynamics(blends, fit_step_sizes(model, coefficients, self._batches))
            require_reversible(model).dynamics = dynamics
        weights = [copy.deepcopy(module.state_dict()) for module in update_predictors(model)]
        divergence = mean_divergence(model, self._measured, self._predictions)
        return _Attempt(blends, dynamics, weights, fits, divergence)

    def _calibrated_blends(self, bits: float) -> list[list[Fraction]]:
        """Return the allocations worth trying: the cheapest with any sign, and the cheapest of positive blends.

        The costs are those of one layer alone. Errors of negative blends add up from layer to layer in a way that they
        do not show, so that the two must be compared as a whole.
        """
        if self._costs is None:
            self._costs = self._measure_costs()
        positive = BlendCosts(
            tuple({blend: cost for blend, cost in costs.items() if blend > 0} for costs in self._costs.divergence)
        )
        return [self._costs.choose(bits), positive.choose(bits)]

    def _measure_costs(self) -> BlendCosts:
        """Measure the costs of all blends, with predictors fitted to the ordinary trajectory at a = 1."""
        model, ones = self._model, self._method.dynamics([ONE] * self._layers)
        make_reversible(model, ones)
        if self._method.predictor is not None:
            fit_update_predictors(
                model,
                add_update_predictors(model, self._method.predictor),
                [ones.coefficients(layer) for layer in range(self._layers)],
                self._batches,
                "original",
                self._progress,
            )
        return measure_blend_costs(model, self._measured, self._progress)

    def _operations(self) -> int:
        """Return the floating-point operations of a forward pass on one sequence."""
        (batch,) = _first_tokens(self._batches[:1], 1)
        with FlopCounterMode(display=False) as counter:
            self._model(**batch)
        return counter.get_total_flops()

    def _conversion(self, attempt: "_Attempt", operations: int) -> Conversion:
        assert self._original_loss is not None
        model, dynamics = self._model, attempt.dynamics
        predicted = None
        if self._costs is not None:
            predicted = self._original_loss + self._costs.predicted(attempt.blends)
        spent = sum(dynamics.side_information_bits(layer) for layer in range(self._layers))
        width = unwrap(model).config.get_text_config(decoder=True).hidden_size
        return Conversion(
            bits=spent / self._layers,
            dynamics=dynamics,
            original_loss=self._original_loss,
            loss=mean_loss(model, self._judged),
            predicted_loss=predicted,
            calibration_tokens=_tokens(self._batches),
            held_out_tokens=_tokens(self._held_out),
            added_parameters=sum(
                parameter.numel() for module in update_predictors(model) for parameter in module.parameters()
            ),
            added_compute=self._operations() / operations - 1 if operations else math.nan,
            side_information=spent * width / 8,
            checkpoints=self._layers * width * unwrap(model).dtype.itemsize,
            fits=tuple(attempt.fits),
        )


@dataclass(frozen=True)
class _Attempt:
    """One way of spending a budget, with everything that was fitted to it, and how far it is from the original."""

    blends: Sequence[Fraction]
    dynamics: BlendedMidpoint
    predictors: Sequence[dict[str, Any]]
    fits: Sequence[LayerFit]
    divergence: float

    def restore(self, model: nn.Module) -> None:
        """Give a model that another attempt was made with this one's dynamics and predictors."""
        require_reversible(model).dynamics = self.dynamics
        for module, weights in zip(update_predictors(model), self.predictors, strict=True):
            module.load_state_dict(weights)


def _tokens(batches: Sequence[Batch]) -> int:
    return sum(batch["input_ids"].numel() for batch in batches)


def _first_tokens(batches: Sequence[Batch], tokens: int) -> list[Batch]:
    """Return the first sequences of the text, as many as hold `tokens` tokens, and one at least."""
    first: list[Batch] = []
    for batch in batches:
        left = tokens - _tokens(first)
        if left <= 0:
            break
        ids = batch["input_ids"]
        first.append({"input_ids": ids[: max(1, left // ids.shape[1])]})
    return first
