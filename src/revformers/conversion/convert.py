"""Conversion of a pretrained model: blends from a bit budget, then update predictors."""

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerBase

from revformers.conversion.allocation import USUAL_BITS, LayerCosts, check_budget, uniform_blends
from revformers.conversion.calibration import Text, as_batches, last_sequences, number_of_tokens, read_text, split_off
from revformers.conversion.costs import COST_TOKENS, measure_layer_costs
from revformers.conversion.fit import LastUpdate, LayerFit, fit_last_updates, fit_update_predictors
from revformers.conversion.measure import Batch, mean_loss
from revformers.conversion.report import Conversion
from revformers.conversion.unfinished import Unfinished, identity_of, stage_of
from revformers.data.section import AddBosToken
from revformers.dynamics.base import ONE
from revformers.dynamics.blended_midpoint import BlendedMidpoint
from revformers.dynamics.compensation import compensating_step_sizes, leads
from revformers.dynamics.two_evaluation_midpoint import TwoEvaluationMidpoint
from revformers.engine.state_format import StateFormat, parse_states
from revformers.models.attach import add_update_predictors
from revformers.models.discovery import find_stack, unwrap
from revformers.models.forward import ReversibleStack
from revformers.models.hint import without_hint
from revformers.models.parts import record_provenance, require_reversible, reversible_stack, update_predictors
from revformers.models.quantization import keep_trainable
from revformers.models.states import format_for, run_in_64_bits
from revformers.models.update_predictor import PredictorForm, PredictorName, predictor_form_of
from revformers.reversible import make_residual, make_reversible

Allocation = Literal["uniform", "calibrated"]

Progress = Callable[[int, int], None]

TARGET_BUDGETS = (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
"""Budgets that `Converter.convert_to_target` tries, in bits per element and layer."""


@dataclass(frozen=True)
class Method:
    """The method of a conversion, independent of the budget.

    Attributes:
        allocation: ``"calibrated"`` allocates the bits by the measured cost of each layer's blend; ``"uniform"`` gives
            every layer the same blend (up to one bit).
        predictor: the form of the update predictors; None converts with blends alone, whose step sizes compensate for
            them (`dynamics.compensation`).
        two_evaluations: use `TwoEvaluationMidpoint`, the paper's own conversion, instead of `BlendedMidpoint`.

    """

    allocation: Allocation = "calibrated"
    predictor: PredictorForm | None = field(default_factory=lambda: PredictorForm(("state",)))
    two_evaluations: bool = False

    def __post_init__(self) -> None:
        if self.two_evaluations and self.predictor is not None:
            raise ValueError('two_evaluations replaces predictors; give predictor="none" with it.')

    def dynamics(self, blends: Sequence[Fraction]) -> BlendedMidpoint:
        """Return the dynamics with these blends, one per layer."""
        if self.two_evaluations:
            return TwoEvaluationMidpoint(blends)
        # With predictors, the step sizes are fitted together with them.
        return BlendedMidpoint(blends, compensating_step_sizes(blends) if self.predictor is None else 1.0)


def convert(
    model: nn.Module,
    bits: float = USUAL_BITS,
    calibration: Text | None = None,
    *,
    held_out: Text | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text_column: str = "text",
    sequences: int = 128,
    length: int = 256,
    add_bos_token: AddBosToken = "auto",
    allocation: Allocation = "calibrated",
    predictor: PredictorName | PredictorForm = "state",
    two_evaluations: bool = False,
    states: StateFormat | str = "auto",
    progress: Progress = lambda done, total: None,
    unfinished: str | os.PathLike[str] | None = None,
) -> Conversion:
    """Make a pretrained model reversible, in place, with as little loss as a budget of side information allows.

    Args:
        model: an ordinary causal language model of transformers.
        bits: side information in bits per element and layer, averaged over the layers, from 0 to 8; may be fractional.
        calibration: text without padding, to which the predictors are fitted. If it has two or more sequences, an
            eighth of them (at most 4,096 tokens, at least one sequence) is set aside to evaluate the fit. Tokens:
            int64[sequences, tokens], batches ``{"input_ids": int64[batch, tokens]}``, or a `datasets.Dataset` with a
            column ``input_ids``, each row of which is a sequence. Text: a list of strings, each a document; a
            `datasets.Dataset` with a column of text; or the path of a .txt, .jsonl, .json or .parquet file, or of a
            directory of such files. A string alone is always a path.
        held_out: text to measure the losses on, in any of these forms; by default the calibration text.
        tokenizer: the model's tokenizer; needed for text, not for tokens.
        text_column: the column that holds the text of a data set or a file of records.
        sequences: largest number of sequences to read from text or a data set, for `calibration` and for `held_out`.
        length: tokens per sequence of text; documents are concatenated and cut into blocks of this length.
        add_bos_token: whether a beginning-of-sequence token precedes every document, and the running text of .txt
            files: ``"auto"`` does what the tokenizer does with a text; ``"always"`` or ``"never"``.
        allocation: ``"calibrated"`` (blends by their measured costs) or ``"uniform"``; see `Method`.
        predictor: the input of the update predictors, by name or form; ``"none"`` converts with blends alone.
        two_evaluations: use `TwoEvaluationMidpoint` instead of `BlendedMidpoint`.
        states: the format of the states, as in `make_reversible`. The conversion takes as few binary digits after the
            point less as 32-bit states need to hold four times the largest magnitude that it meets in the text.
        progress: called before the first layer and after every layer with the number of layers that are done and the
            total; a layer that is fitted twice counts twice.
        unfinished: a directory for intermediate results. After an interruption the same call continues from there and
            ends with the same model, to the bit. It is removed at the end.

    Returns:
        The costs of the conversion. The model then trains, saves and loads as a reversible model.

    Warns:
        UserWarning: if the loss rises by more than 1%.

    Raises:
        FileNotFoundError: for a path that does not exist.
        NotReversibleError: if the model is not a plain fold over its layers.
        ValueError: for bits out of range, missing calibration text, text without a tokenizer or in an unsupported form,
            a model that is already reversible, states in no known format, or 32-bit states that cannot hold the
            model's.

    """
    form = predictor if isinstance(predictor, PredictorForm) else predictor_form_of(predictor)
    check_budget(bits)
    for name, value, least in (("sequences", sequences, 1), ("length", length, 2)):
        if value < least:
            raise ValueError(f"convert takes a {name} of at least {least}, not {value}.")
    tokens, held_out_tokens = (
        read_text(text, tokenizer, text_column, sequences, length, add_bos_token) for text in (calibration, held_out)
    )
    method = Method(allocation, form, two_evaluations)
    folder = None if unfinished is None else Path(unfinished).resolve()
    converter = Converter(model, method, tokens, held_out_tokens, progress, folder, parse_states(states))
    conversion = converter.convert(bits)
    converter.finish()
    if conversion.warning:
        warnings.warn(conversion.warning, stacklevel=2)
    return conversion


class Converter:
    """Converts one model by one method, at any number of budgets; measurements independent of the budget run once.

    Args:
        model: an ordinary causal language model of transformers.
        method: how to convert.
        calibration: as for `convert`.
        held_out: as for `convert`.
        progress: as for `convert`.
        unfinished: as for `convert`, until `finish` is called.
        states: as for `convert`.

    Raises:
        NotReversibleError: if the model is not a plain fold over its layers.
        ValueError: for missing calibration text, a model that is already reversible, or a directory that holds another
            unfinished conversion.

    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        calibration: Sequence[Batch] | Tensor | None,
        held_out: Sequence[Batch] | Tensor | None = None,
        progress: Progress = lambda done, total: None,
        unfinished: Path | None = None,
        states: StateFormat | None = None,
    ) -> None:
        if reversible_stack(model) is not None:
            raise ValueError(
                "The model is already reversible; call revformers.make_residual(model) to convert it again."
            )
        if unwrap(model).get_output_embeddings() is None:
            raise ValueError(
                f"{type(unwrap(model)).__name__} has no head that predicts tokens, which a conversion needs for its "
                f"losses; convert the language model, save it, and load it with the head that you need."
            )
        keep_trainable(model)  # before the first evaluation
        self._model = model
        self._method = method
        self._states = states or StateFormat()
        self._layers = len(find_stack(model).layers)
        self._batches = as_batches(calibration, model)
        self._fitted, self._set_aside = split_off(self._batches)
        self._held_out = as_batches(held_out, model) if held_out is not None else []
        self._judged = self._held_out or self._batches
        self._progress = progress
        self._done = self._to_do = 0
        self._measured = False
        self._last_updates: list[LastUpdate] = []
        self._costs: LayerCosts | None = None
        self._original_loss: float | None = None
        self._unfinished = Unfinished(
            unfinished, lambda: identity_of(unwrap(model), self._batches, repr(method), version("revformers"))
        )

    @property
    def resumable(self) -> bool:
        """Whether the directory holds an unfinished conversion to resume."""
        return self._unfinished.begun

    def finish(self) -> None:
        """Remove the intermediate results."""
        self._unfinished.remove()

    @without_hint()
    def convert(self, bits: float) -> Conversion:
        """Convert the model in place, starting from the ordinary network; restore that if the conversion fails.

        Raises:
            ValueError: for bits out of range.

        """
        check_budget(bits)
        model, mode = make_residual(self._model), self._model.training
        model.eval()
        try:
            if self._original_loss is None:
                self._original_loss = mean_loss(model, self._judged)
            operations = self._operations()
            self._done, self._to_do = 0, self._layers * self._passes
            self._progress(0, self._to_do)
            self._measure()
            blends = self._blends(bits)
            dynamics = self._method.dynamics(blends)
            make_reversible(model, dynamics)
            fits, step_sizes = self._fit(dynamics, blends)
            if any(size != 1 for size in step_sizes):
                dynamics = dataclasses.replace(dynamics, step_size=tuple(step_sizes))
                require_reversible(model).dynamics = dynamics
            conversion = self._conversion(dynamics, fits, blends, operations)
            record_provenance(model, conversion.provenance(model))
            return conversion
        except BaseException:
            # A partial conversion is of no use: restore the ordinary network.
            make_residual(model)
            raise
        finally:
            model.train(mode)

    def convert_to_target(self, loss_increase: float) -> Conversion:
        """Convert in place with the smallest budget that keeps the loss increase within a target.

        Budgets from `TARGET_BUDGETS` are tried by bisection, each with a conversion of its own, and compared by the
        loss on the held-out text (without held-out text, on the calibration text).

        Args:
            loss_increase: the target, as a fraction of the original's loss; 0.005 is half a percent.

        Raises:
            ValueError: for a target that is not positive, or that 8 bits miss; the model is then ordinary.

        """
        if not (math.isfinite(loss_increase) and loss_increase > 0):
            raise ValueError(f"A target for the loss increase is a positive share such as 0.005, not {loss_increase}.")
        low, high = 0, len(TARGET_BUDGETS) - 1
        tried, conversion = -1, None
        while low < high:
            tried = (low + high) // 2
            conversion = self.convert(TARGET_BUDGETS[tried])
            if conversion.loss_increase <= loss_increase:
                high = tried
            else:
                low = tried + 1
        if conversion is None or tried != low:  # the model was converted with the last budget tried
            conversion = self.convert(TARGET_BUDGETS[low])
        if conversion.loss_increase > loss_increase:
            make_residual(self._model)
            raise ValueError(
                f"{TARGET_BUDGETS[low]} bits increase the loss by {100 * conversion.loss_increase:.3g}%, which misses "
                f"the target of {100 * loss_increase:.3g}%; choose a larger one."
            )
        return conversion

    def _blends(self, bits: float) -> list[Fraction]:
        if self._method.allocation == "uniform":
            return uniform_blends(bits, self._layers)
        assert self._costs is not None
        return self._costs.choose(bits)

    def _measure(self) -> None:
        """Measure what does not depend on the budget: the fits of last updates, and the costs of blends."""
        method, model = self._method, self._model
        if self._measured:
            return
        make_reversible(model, BlendedMidpoint(ONE))
        if method.predictor is not None:
            predictors = add_update_predictors(model, PredictorForm(("state",)))
            stage = self._unfinished.stage("last-updates")
            self._last_updates = fit_last_updates(model, predictors, self._fitted, self._layer_done, stage)
            self._done += self._layers
        if method.allocation == "calibrated" or method.predictor is not None:
            self._costs = self._measure_costs()
        make_residual(model)
        self._measured = True  # only now: an interrupted measurement starts again

    def _measure_costs(self) -> LayerCosts:
        stage = self._unfinished.stage("costs")
        if done := stage.result(0):
            return LayerCosts(tuple(done["read"].tolist()), tuple(done["kept"].tolist()))
        costs = measure_layer_costs(self._model, last_sequences(self._batches, COST_TOKENS))
        result = {name: torch.tensor(getattr(costs, name), dtype=torch.float64) for name in ("read", "kept")}
        stage.save(0, result, dict, last=True)
        return costs

    def _fit(self, dynamics: BlendedMidpoint, blends: Sequence[Fraction]) -> tuple[list[LayerFit], list[float]]:
        """Fit the predictors of the reversible model, if the method has any; return their fits and the step sizes."""
        if self._method.predictor is None:
            return [], []
        assert self._costs is not None
        return fit_update_predictors(
            self._model,
            add_update_predictors(self._model, self._method.predictor),
            [dynamics.coefficients(layer) for layer in range(self._layers)],
            leads(blends, self._costs.lead_parts),
            self._last_updates,
            self._fitted,
            self._set_aside,
            self._layer_done,
            self._unfinished.stage(stage_of(blends)),
        )

    def _layer_done(self, layer: int) -> None:
        self._progress(self._done + layer + 1, self._to_do)

    @property
    def _passes(self) -> int:
        """How many times the next conversion fits every layer."""
        if self._method.predictor is None:
            return 0
        return 1 if self._measured else 2

    def _choose_states_and_evaluate(self, reversible: ReversibleStack) -> tuple[float, float]:
        """Choose the format of the states; return the loss with it, and the largest magnitude of states and updates."""
        loss, magnitude = run_in_64_bits(reversible, lambda: mean_loss(self._model, self._judged))
        reversible.states = format_for(reversible, self._states, magnitude)
        used, embedding = reversible.fixed_point, unwrap(self._model).get_input_embeddings().weight
        if reversible.states.of_pass(embedding.dtype, embedding.device) != used:
            loss = mean_loss(self._model, self._judged)
        return loss, magnitude

    def _operations(self) -> int:
        """Return the floating-point operations of a forward pass on one sequence."""
        batch = {"input_ids": self._batches[0]["input_ids"][:1]}
        with FlopCounterMode(display=False) as counter:
            self._model(**batch)
        return counter.get_total_flops()

    def _conversion(
        self, dynamics: BlendedMidpoint, fits: Sequence[LayerFit], blends: Sequence[Fraction], operations: int
    ) -> Conversion:
        assert self._original_loss is not None
        model, reversible = self._model, require_reversible(self._model)
        loss, magnitude = self._choose_states_and_evaluate(reversible)
        assert reversible.fixed_point is not None
        spent = sum(dynamics.side_information_bits(layer) for layer in range(self._layers))
        width = unwrap(model).config.get_text_config(decoder=True).hidden_size
        form = self._method.predictor
        return Conversion(
            bits=spent / self._layers,
            dynamics=dynamics,
            original_loss=self._original_loss,
            loss=loss,
            predicted_loss=None if self._costs is None else self._original_loss + self._costs.predicted(blends),
            calibration_tokens=number_of_tokens(self._batches),
            held_out_tokens=number_of_tokens(self._held_out),
            added_parameters=sum(
                parameter.numel() for module in update_predictors(model) for parameter in module.parameters()
            ),
            added_compute=self._operations() / operations - 1 if operations else math.nan,
            side_information=spent * width / 8,
            checkpoints=self._layers * width * unwrap(model).dtype.itemsize,
            states=2 * reversible.fixed_point.dtype.itemsize * width,
            state_format=reversible.states,
            largest_magnitude=magnitude,
            fits=tuple(fits),
            features=0 if form is None else len(form.features) * width,
            fitted_tokens=number_of_tokens(self._fitted),
        )
