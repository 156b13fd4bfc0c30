"""The end of a run whose losses or weights are no longer finite."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from revformers.errors import DivergedError
from revformers.private_api import unlogged_loss
from revformers.training.main_process import refuse_once
from revformers.training.run_directory import RunDirectory


class StopAfterDivergence(TrainerCallback):
    """Ends a run after a loss that is not finite, and before weights that are not are saved.

    So the last checkpoint is always one that the run can continue from.

    Args:
        run: the run directory.
        trainer: the Trainer.

    """

    def __init__(self, run: RunDirectory, trainer: Trainer) -> None:
        self._run = run
        self._trainer = trainer

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: Any,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Raise DivergedError for a training or validation loss that is not finite; all processes log the same."""
        for name, value in (logs or {}).items():
            if (name == "loss" or name.endswith("_loss")) and not math.isfinite(value):
                kind = "training" if name == "loss" else "validation"
                if state.global_step:
                    self._refuse(f"The {kind} loss is {value} at step {state.global_step}")
                refuse_once(
                    f"The validation loss is {value} before training, so the model cannot be trained; check its "
                    f"weights, or set training.precision to float32 or bfloat16."
                )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Raise DivergedError if the weights, or the losses since the last log, are not finite and would be saved."""
        if not control.should_save and state.global_step < state.max_steps:
            return
        loss, _ = unlogged_loss(self._trainer)
        losses, weights = zip(*gather_object([(math.isfinite(loss), _are_finite(self._trainer.model))]), strict=True)
        if not all(losses):
            self._refuse(f"The training loss is not finite at step {state.global_step}")
        if not all(weights):
            self._refuse(f"The weights are not finite after step {state.global_step}")

    def _refuse(self, fact: str) -> None:
        again = ", or --overwrite to start again" if self._run.checkpoints.complete() else ""
        refuse_once(
            f"{fact}: the run has diverged, and no model is saved. A lower training.learning_rate, or a "
            f"training.precision of float32 or bfloat16, may prevent that; {self._run.remedy()}{again}.",
            DivergedError,
        )


def _are_finite(model: Any) -> bool:
    return all(bool(torch.isfinite(one).all()) for one in model.parameters() if one.requires_grad)
