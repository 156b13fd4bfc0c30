"""Moving the blends of a converted model from nearly the ordinary network to their target while it trains."""

from fractions import Fraction
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from revformers.dynamics.base import LARGEST_DENOMINATOR
from revformers.dynamics.blended_midpoint import BlendedMidpoint
from revformers.hf.state import require_reversible, update_predictors
from revformers.training.errors import RecipeError


class Annealing(TrainerCallback):
    """Sets the blend of every layer before every optimizer step, a function of the number of that step alone.

    Step s, counted from 0, of `steps` has the blend start + (target - start) s / steps, to the nearest 1/256, with the
    sign of the target; later steps have the target itself. A target below the start is kept throughout. An update
    predictor was fitted to the target, and what it adds back is proportional to the blend: its `scale` is the blend
    over the target. Evaluations and checkpoints have the blend of the step before them, the finished model the target.

    Args:
        model: a reversible model, with the target as its dynamics.
        steps: optimizer steps until the target is reached.
        start: the blend of the first step, a multiple of 1/256.

    Raises:
        RecipeError: for a model without blends.

    """

    def __init__(self, model: nn.Module, steps: int, start: float) -> None:
        self._stack = require_reversible(model)
        target = self._stack.dynamics
        if not isinstance(target, BlendedMidpoint):
            raise RecipeError(f"annealing.steps needs blends, which {target.name} has none of; set it to 0.")
        self._predictors: list[Any] = list(update_predictors(model))
        self._steps = steps
        self._start = round(start * LARGEST_DENOMINATOR)
        self._target = target

    def blends(self, step: int) -> list[Fraction]:
        """Return the blend of every layer in optimizer step `step`, counted from 0."""
        targets = [self._target.layer_blend(layer) for layer in range(self._stack.number_of_layers)]
        return targets if step >= self._steps else [self._blend(target, step) for target in targets]

    def _blend(self, target: Fraction, step: int) -> Fraction:
        start = Fraction(self._start, LARGEST_DENOMINATOR)
        if abs(target) <= start:
            return target
        size = start + (abs(target) - start) * Fraction(step, self._steps)
        rounded = Fraction(round(size * LARGEST_DENOMINATOR), LARGEST_DENOMINATOR)
        return rounded if target > 0 else -rounded

    def set(self, step: int) -> None:
        """Give the model the blends of optimizer step `step`, counted from 0."""
        if step >= self._steps:
            self._stack.dynamics = self._target
        else:
            self._stack.dynamics = BlendedMidpoint(
                self.blends(step),
                self._target.step_size,
                granularity=self._target.granularity,
                start=self._target.start,
                readout=self._target.readout,
            )
        for layer, predictor in enumerate(self._predictors):
            predictor.scale = float(self.blends(step)[layer] / self._target.layer_blend(layer))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the blends of the step that begins."""
        self.set(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the model with its target."""
        self.set(self._steps)
