"""Annealing: the blends of a converted model move from nearly the ordinary network to their target during training."""

import dataclasses
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerState

from revformers.checkpoints.adapter_base import DESCRIPTION
from revformers.checkpoints.marks import KEY
from revformers.checkpoints.model_files import CONFIG_NAME
from revformers.dynamics.base import LARGEST_DENOMINATOR
from revformers.dynamics.blended_midpoint import BlendedMidpoint
from revformers.errors import UserError
from revformers.files import write_json
from revformers.models.parts import require_reversible, update_predictors


class Annealing(TrainerCallback):
    """Sets the blend of every layer before every optimizer step, from the number of that step alone.

    In step s of `steps`, counted from 0, the blend is start + (target - start) s / steps, rounded to the nearest 1/256,
    with the sign of the target; in later steps it is the target. A target within the start is used throughout. The
    correction of an update predictor is proportional to the blend, and the predictor was fitted to the target: its
    `scale` is therefore the blend divided by the target. A step size that the conversion fitted moves from 1 to its
    target in the same way. An evaluation uses the blends of the step before it. Checkpoints, which hold no scale, and
    the finished model use the target: the best model is one whose evaluation used it too.

    Args:
        model: a reversible model, whose dynamics are the target.
        steps: optimizer steps until the target is reached.
        start: the blend of the first step, a multiple of 1/256.

    Raises:
        UserError: for a model without blends.

    """

    def __init__(self, model: nn.Module, steps: int, start: float) -> None:
        self._stack = require_reversible(model)
        target = self._stack.dynamics
        if not isinstance(target, BlendedMidpoint):
            raise UserError(f"annealing.steps needs dynamics with blends, and {target.name} has none; set it to 0.")
        self._predictors: list[Any] = list(update_predictors(model))
        self._steps = steps
        self._start = round(start * LARGEST_DENOMINATOR)
        self._target = target

    @property
    def _targets(self) -> list[Fraction]:
        return [self._target.layer_blend(layer) for layer in range(self._stack.number_of_layers)]

    def blends(self, step: int) -> list[Fraction]:
        """Return the blend of every layer at optimizer step `step`, counted from 0."""
        return [self._blend(target, step) for target in self._targets]

    def _blend(self, target: Fraction, step: int) -> Fraction:
        start = Fraction(self._start, LARGEST_DENOMINATOR)
        if step >= self._steps or abs(target) <= start:
            return target
        size = start + (abs(target) - start) * Fraction(step, self._steps)
        rounded = Fraction(round(size * LARGEST_DENOMINATOR), LARGEST_DENOMINATOR)
        return rounded if target > 0 else -rounded

    def set(self, step: int) -> None:
        """Give the model the blends of optimizer step `step`, counted from 0."""
        blends = self.blends(step)
        shares = [float(blend / target) for blend, target in zip(blends, self._targets, strict=True)]
        dynamics = self._target
        if step < self._steps:
            fitted = dynamics.step_size
            sizes = (
                tuple(1 + (size - 1) * share for size, share in zip(fitted, shares, strict=True))
                if isinstance(fitted, tuple)
                else fitted
            )
            dynamics = dataclasses.replace(dynamics, blend=tuple(blends), step_size=sizes, random_seed=None)
        self._stack.dynamics = dynamics
        # strict=False: a model without predictors has nothing to scale
        for predictor, share in zip(self._predictors, shares, strict=False):
            predictor.scale = share

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Set the blends of the step that begins, and forget a best model that was evaluated before the target."""
        self.set(state.global_step)
        if state.global_step <= self._steps:
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Write the target into the checkpoint's description, because the saved predictors are not scaled."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        # A model's config.json holds the description under a key; the file of an adapter is the description.
        for path in (folder / CONFIG_NAME, folder / DESCRIPTION):
            if state.is_world_process_zero and path.is_file():
                values = json.loads(path.read_text(encoding="utf-8"))
                values.get(KEY, values)["dynamics"] = self._target.to_dict()
                write_json(path, values)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Set the blends of the model to their target."""
        self.set(self._steps)
