"""The callbacks by which a run is stopped at any moment and goes on as if nothing had happened."""

from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from revformers.errors import UserError
from revformers.private_api import restore_unlogged_loss, unlogged_loss
from revformers.training.run_directory import RunDirectory
from revformers.training.seal import facts_of


class KeepCheckpoints(TrainerCallback):
    """Seals a checkpoint when all processes have written their part of it, and deletes older ones after that.

    The Trainer deletes older checkpoints first, does not wait for other processes, and leaves out the losses since its
    last log.

    Args:
        run: the run directory.
        limit: the number of checkpoints to keep.
        trainer: the Trainer.

    """

    def __init__(self, run: RunDirectory, limit: int, trainer: Trainer) -> None:
        self._run = run
        self._limit = limit
        self._trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Raise UserError before the Trainer saves into a directory that is no longer that of the run."""
        if control.should_save and args.should_save:
            self._run.check_in_place()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Seal the checkpoint of this step."""
        loss, logged = unlogged_loss(self._trainer)
        losses = gather_object([loss])  # when it has all of them, each process has written its random state
        if args.should_save:
            facts = {"learning_rate": args.learning_rate, "unlogged_losses": losses, "last_logged_step": logged}
            self._run.finish_checkpoint(state.global_step, facts, self._limit, state.best_model_checkpoint)


class FollowRecipe(TrainerCallback):
    """Gives a resumed training what the checkpoint of the Trainer lacks: the settings of the recipe, and its losses.

    Args:
        run: the run directory.
        checkpoint: the checkpoint.
        trainer: the Trainer.

    """

    def __init__(self, run: RunDirectory, checkpoint: Path, trainer: Trainer) -> None:
        self._run = run
        self._checkpoint = checkpoint
        self._trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Set the intervals and the beginning of the log, the learning rates and the place of the best checkpoint.

        Raises:
            UserError: if the learning rate has changed under a schedule that cannot be computed for any step.

        """
        facts = facts_of(self._checkpoint)
        restore_unlogged_loss(self._trainer, facts["unlogged_losses"][args.process_index], facts["last_logged_step"])
        state.compute_steps(args, state.max_steps)
        scheduler = kwargs["lr_scheduler"]
        if isinstance(scheduler, LambdaLR):
            _set_learning_rate(scheduler, args.learning_rate)
        elif facts["learning_rate"] != args.learning_rate:
            raise UserError(
                f"training.learning_rate cannot change under the schedule {args.lr_scheduler_type}, which goes on from "
                f"the last rate; leave it as it was, or train elsewhere with --output DIRECTORY."
            )
        best = self._run.checkpoints.best_of(self._checkpoint)
        state.best_model_checkpoint = best and str(best)  # the directory may have been moved


class NothingToTrainError(Exception):
    """Raised when the checkpoint to resume from is that of the last step."""


class StopAtLastStep(TrainerCallback):
    """Raises NothingToTrainError before an epoch that begins after the last step.

    A run can die between its last checkpoint and its figures. The Trainer checks the number of steps only after a
    step, so it would train one step too many.
    """

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Raise if no step is left; at this point the weights and the log are those of the checkpoint."""
        if state.global_step >= state.max_steps:
            raise NothingToTrainError


def _set_learning_rate(scheduler: LambdaLR, peak: float) -> None:
    """Let a schedule go on at its step with another peak; loading its state has restored the rates of the former."""
    rates = [peak * factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group |= {"initial_lr": peak, "lr": rate}
    values = {"base_lrs": [peak] * len(rates), "_last_lr": rates}
    scheduler.load_state_dict(scheduler.state_dict() | values)
