import time

import pytest
from transformers import TrainerState

from revformers.training.history import Clock, loss_curve


def test_the_clock_goes_on_where_the_checkpoint_was_saved():
    saved = Clock().state()
    assert saved["attributes"]["seconds"] == 0
    saved["attributes"]["seconds"] = 100.0
    clock = Clock()
    state = TrainerState(log_history=[{"step": 5, "loss": 2.0, "seconds": 90.0}], stateful_callbacks={"Clock": saved})
    clock.on_train_begin(None, state, None)
    time.sleep(0.01)
    state.log_history.append({"step": 10, "loss": 1.0})
    clock.on_log(None, state, None)
    assert state.log_history[-1]["seconds"] == pytest.approx(100.01, abs=1.0)
    assert state.log_history[-1]["seconds"] >= 100.01


def test_the_curve_holds_losses_only():
    state = TrainerState(
        log_history=[
            {"step": 5, "loss": 2.0, "seconds": 1.0, "epoch": 0.1, "learning_rate": 0.1, "grad_norm": 1.0},
            {"step": 5, "eval_loss": 2.5, "eval_runtime": 3.0, "seconds": 2.0},
            {"step": 5, "train_runtime": 3.0, "seconds": 3.0},
        ]
    )
    assert loss_curve(state) == [
        {"step": 5, "seconds": 1.0, "loss": 2.0, "learning_rate": 0.1, "grad_norm": 1.0},
        {"step": 5, "seconds": 2.0, "eval_loss": 2.5},
    ]
