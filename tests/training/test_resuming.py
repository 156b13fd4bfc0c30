import hashlib
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from transformers import TrainerControl, TrainerState, TrainingArguments

from revformers.errors import UserError
from revformers.private_api import unlogged_loss
from revformers.training.resuming import FollowRecipe, KeepCheckpoints, NothingToTrainError, StopAtLastStep
from revformers.training.run_directory import RunDirectory
from revformers.training.seal import facts_of, fault_of


def arguments(directory, **options):
    return TrainingArguments(str(directory), use_cpu=True, report_to="none", **options)


def add_checkpoint(run, step):
    run.checkpoints.of_step(step).mkdir(parents=True)
    (run.checkpoints.of_step(step) / "weights").write_text("weights")


def trainer_with_losses(loss=0.0, logged=0):
    """What a Trainer knows of its losses."""
    return SimpleNamespace(_tr_loss=torch.tensor(loss), _globalstep_last_logged=logged, _total_loss_scalar=0.0)


def keep(run, step, limit, best=None, trainer=None, **options):
    add_checkpoint(run, step)
    state = TrainerState(global_step=step, best_model_checkpoint=best and str(best))
    KeepCheckpoints(run, limit, trainer or trainer_with_losses()).on_save(
        arguments(run.path, **options), state, TrainerControl()
    )


def test_a_saved_checkpoint_is_sealed_and_then_older_ones_go(tmp_path):
    run = RunDirectory(tmp_path)
    keep(run, 2, 2, trainer=trainer_with_losses(1 / 3, 1), learning_rate=0.5)
    digest = hashlib.sha256(b"weights").hexdigest()
    assert facts_of(run.checkpoints.of_step(2)) == {
        "learning_rate": 0.5,
        "unlogged_losses": [torch.tensor(1 / 3).item()],
        "last_logged_step": 1,
        "sha256": {"weights": digest},
    }
    keep(run, 4, 2)
    keep(run, 6, 2, best=run.checkpoints.of_step(2))
    assert run.checkpoints.complete() == [run.checkpoints.of_step(2), run.checkpoints.of_step(6)]
    assert fault_of(run.checkpoints.of_step(6)) is None


@pytest.mark.parametrize("save", [False, True])
def test_nothing_is_saved_into_a_directory_that_was_moved(tmp_path, save):
    with RunDirectory(tmp_path / "run") as run:
        run.path.mkdir()
        run.lock.acquire()
        callback, control = KeepCheckpoints(run, 1, trainer_with_losses()), TrainerControl(should_save=save)
        callback.on_step_end(arguments(tmp_path), TrainerState(), control)
        run.path.rename(tmp_path / "moved")
        with pytest.raises(UserError, match="no longer the directory") if save else nullcontext():
            callback.on_step_end(arguments(tmp_path), TrainerState(), control)


def resumed(peak, steps, step):
    """An optimizer and a schedule at a step, as a checkpoint restores them, and the factor of the schedule."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    schedule = LambdaLR(optimizer, lambda now: 1 - now / steps)
    for _ in range(step):
        optimizer.step()
        schedule.step()
    return optimizer, schedule


def follow(tmp_path, optimizer, schedule, state=None, **options):
    run = RunDirectory(tmp_path)
    before, trainer = trainer_with_losses(1 / 3, 4), trainer_with_losses(0.0, 6)
    keep(run, 6, 2, trainer=before, learning_rate=1.0)
    callback = FollowRecipe(run, run.checkpoints.of_step(6), trainer)
    state = state or TrainerState(global_step=6, max_steps=12)
    state.save_to_json(str(run.checkpoints.of_step(6) / "trainer_state.json"))
    given = arguments(tmp_path, **options)
    callback.on_train_begin(given, state, TrainerControl(), optimizer=optimizer, lr_scheduler=schedule)
    assert unlogged_loss(trainer) == unlogged_loss(before)
    return state


@pytest.mark.parametrize("peak", [1.0, 0.1])
def test_a_longer_training_follows_the_schedule_of_the_recipe(tmp_path, peak):
    old, new = resumed(1.0, 6, 6), resumed(peak, 12, 6)
    state = old[1].state_dict()
    assert old[0].param_groups[0]["lr"] == 0  # a finished schedule
    optimizer, schedule = resumed(peak, 12, 0)
    optimizer.load_state_dict(old[0].state_dict())
    schedule.load_state_dict(state)
    follow(tmp_path, optimizer, schedule, learning_rate=peak)
    for _ in range(3):
        assert optimizer.param_groups[0]["lr"] == schedule.get_last_lr()[0] == new[0].param_groups[0]["lr"] > 0
        for one in (optimizer, schedule, *new):
            one.step()


def test_an_unchanged_schedule_stays_as_it_was_to_the_bit(tmp_path):
    optimizer, schedule = resumed(1e-3, 7, 3)
    before = optimizer.param_groups[0]["lr"], schedule.state_dict()
    follow(tmp_path, optimizer, schedule, learning_rate=1e-3)
    assert (optimizer.param_groups[0]["lr"], schedule.state_dict()) == before


def test_a_schedule_that_goes_on_from_its_last_rate_refuses_another_one(tmp_path):
    optimizer, _ = resumed(1.0, 6, 0)
    follow(tmp_path / "same", optimizer, ReduceLROnPlateau(optimizer), learning_rate=1.0)
    with pytest.raises(UserError, match="learning_rate cannot change under the schedule"):
        follow(tmp_path / "other", optimizer, ReduceLROnPlateau(optimizer), learning_rate=0.1)


def test_intervals_are_those_of_the_recipe(tmp_path):
    state = TrainerState(global_step=6, max_steps=12, logging_steps=1, save_steps=1, eval_steps=1)
    follow(tmp_path, *resumed(1.0, 12, 6), state, logging_steps=3, save_steps=4, eval_steps=0.5, eval_strategy="steps")
    assert (state.logging_steps, state.save_steps, state.eval_steps) == (3, 4, 6)


def test_the_best_checkpoint_is_found_in_a_directory_that_was_moved(tmp_path):
    """The best step may be one without a checkpoint; the path of the checkpoint counts."""
    best = "/elsewhere/run/checkpoint-4"
    state = TrainerState(global_step=6, max_steps=12, best_global_step=5, best_model_checkpoint=best)
    follow(tmp_path / "moved", *resumed(1.0, 12, 6), state)
    assert state.best_model_checkpoint == str(tmp_path / "moved" / "checkpoint-4")


def test_no_epoch_begins_after_the_last_step():
    callback, state = StopAtLastStep(), TrainerState(global_step=5, max_steps=6)
    callback.on_epoch_begin(None, state, None)
    state.global_step = 6
    with pytest.raises(NothingToTrainError):
        callback.on_epoch_begin(None, state, None)
