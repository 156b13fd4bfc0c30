from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

from revformers.errors import DivergedError, UserError
from revformers.training.divergence import StopAfterDivergence
from revformers.training.run_directory import RunDirectory

NAN = float("nan")


@pytest.fixture
def parts(tmp_path):
    """What a Trainer knows of its model and its losses, and the callback."""
    trainer = SimpleNamespace(model=torch.nn.Linear(2, 2), _tr_loss=torch.tensor(1.0), _globalstep_last_logged=0)
    return trainer, StopAfterDivergence(RunDirectory(tmp_path), trainer)


@pytest.mark.parametrize(
    ("step", "logs", "message"),
    [
        (3, {"loss": NAN}, "The training loss is nan at step 3: .* A lower training.learning_rate, .*must start again"),
        (3, {"loss": float("inf")}, "The training loss is inf at step 3"),
        (4, {"eval_loss": NAN}, "The validation loss is nan at step 4"),
        (0, {"initial_loss": NAN}, "The validation loss is nan before training, so .*check its weights"),
    ],
)
def test_a_loss_that_is_not_finite_ends_the_run(parts, step, logs, message):
    with pytest.raises(DivergedError if step else UserError, match=message) as raised:
        parts[1].on_log(None, TrainerState(global_step=step), None, logs)
    assert isinstance(raised.value, DivergedError) == bool(step), "weights that came so did not diverge"


def test_a_finite_loss_does_not(parts):
    """The norm of the gradient is infinite where float16 overflows, and that step is left out."""
    parts[1].on_log(None, TrainerState(global_step=3), None, {"loss": 1e30, "grad_norm": NAN, "epoch": 0.5})


def end_step(parts, *, save, step=3, frozen=False, weight=0.0, loss=1.0):
    trainer, callback = parts
    trainer.model.requires_grad_(not frozen)
    trainer.model.weight.data.fill_(weight)
    trainer._tr_loss.fill_(loss)
    callback.on_step_end(None, TrainerState(global_step=step, max_steps=8), TrainerControl(should_save=save))


@pytest.mark.parametrize("when", [{"save": True}, {"save": False, "step": 8}])
def test_what_is_not_finite_is_not_saved(parts, when):
    end_step(parts, **when)
    end_step(parts, save=False, weight=NAN)
    end_step(parts, **when, weight=NAN, frozen=True)  # not the training's doing
    with pytest.raises(DivergedError, match="The weights are not finite after step"):
        end_step(parts, **when, weight=NAN)
    with pytest.raises(DivergedError, match="The training loss is not finite at step"):
        end_step(parts, **when, loss=NAN)
