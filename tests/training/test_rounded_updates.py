import io
import itertools
import warnings
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.optim import SGD, Adafactor, AdamW
from torch.optim.lr_scheduler import LambdaLR
from torchao.optim import AdamW8bit
from transformers import Trainer

import revformers as rf
from revformers.training import rounded_updates as module
from revformers.training.finetune import finetune
from revformers.training.rounded_updates import lost_share, rounded_updates
from tests.tiny_models import tiny
from tests.tiny_trainers import arguments, token_rows
from tests.training.tiny_finetune import tiny_finetune_recipe


def weights(dtype=torch.bfloat16, size=20_000):
    torch.manual_seed(0)
    return nn.Parameter((0.02 * torch.randn(size)).to(dtype))


def share_that_stays(parameter, optimizer, steps):
    before = parameter.detach().clone()
    for _ in range(steps):
        parameter.grad = torch.randn(parameter.shape).to(parameter.dtype).sign()  # a step of about the learning rate
        optimizer.step()
    return (parameter == before).float().mean().item()


@pytest.mark.parametrize(
    ("dtype", "rate"), itertools.product((torch.bfloat16, torch.float16), (1e-6, 1e-5, 3e-5, 1e-4, 1e-3))
)
def test_the_share_is_that_of_the_weights_that_stay_in_a_step(dtype, rate):
    parameter = weights(dtype)
    optimizer = AdamW([parameter], lr=rate, weight_decay=0.0, eps=1e-30 if dtype is torch.bfloat16 else 1e-8)
    predicted = lost_share(optimizer)
    assert share_that_stays(parameter, optimizer, 1) == pytest.approx(predicted, abs=0.02)


def test_what_stays_in_a_step_stays_in_every_step():
    parameter = weights()
    optimizer = AdamW([parameter], lr=1e-5, weight_decay=0.0)
    predicted = lost_share(optimizer)
    assert predicted > 0.7
    assert share_that_stays(parameter, optimizer, 8) > predicted - 0.02


@pytest.mark.parametrize(
    ("optimizer", "share"),
    [
        (lambda: AdamW([weights(torch.float32)], lr=1e-7), 0.0),
        (lambda: SGD([weights()], lr=1e-7), 0.0),  # the size of its updates is that of the gradients
        (lambda: Adafactor([weights()], lr=1e-7), 0.0),
        (lambda: AdamW8bit([weights()], lr=1e-7, bf16_stochastic_round=True), 0.0),
        (lambda: AdamW8bit([weights()], lr=1e-7), 1.0),
        (lambda: AdamW([{"params": [weights()], "lr": 0.0}], lr=1e-7), 0.0),
        (lambda: AdamW([weights(), weights(torch.float32)], lr=1e-7), 0.5),
    ],
)
def test_other_types_and_other_optimizers(optimizer, share):
    assert lost_share(optimizer()) == pytest.approx(share, abs=0.01)


def test_the_rate_is_the_peak_of_a_schedule():
    optimizer = AdamW([weights()], lr=1e-2)
    LambdaLR(optimizer, lambda step: step / 100)
    assert optimizer.param_groups[0]["lr"] == 0
    assert rounded_updates(optimizer, "raise it") is None
    assert rounded_updates(AdamW([weights()], lr=1e-6), "raise it").endswith("; raise it.")


def test_of_weights_on_several_processes_the_own_ones_count():
    """As under FSDP2, whose parameters have the size of the whole and the memory of a part."""

    class Spread(nn.Parameter):
        def detach(self):
            return self

        def numel(self):
            return 2 * super().numel()

        def to_local(self):
            return self.data

    assert lost_share(AdamW([Spread(weights().data)], lr=1e-7)) == pytest.approx(1.0, abs=0.01)


def test_one_process_counts_and_says_it(monkeypatch):
    said = []
    monkeypatch.setattr(module, "lost_share", lambda optimizer: said.append("counted") or 1.0)
    for main in (False, True):
        state = SimpleNamespace(is_world_process_zero=main)
        module.WarnOfRoundedUpdates(said.append).on_train_begin(None, state, None, optimizer=AdamW([weights()]))
        assert len(said) == 2 * main


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("dtype", "rate", "warned"), [("bfloat16", 1e-5, True), ("bfloat16", 1e-2, False), ("float32", 1e-5, False)]
)
def test_a_command_says_that_weights_will_stay(tmp_path, dtype, rate, warned):
    output = io.StringIO()
    options = {
        "model.dtype": dtype,
        "training.learning_rate": rate,
        "training.max_steps": 1,
        "output": str(tmp_path / "run"),
    }
    finetune(tiny_finetune_recipe(tmp_path, options), console=Console(file=output, width=200))
    assert ("of the trained weights will not move" in output.getvalue()) == warned


@pytest.mark.parametrize("rate", [1e-5, 1e-2])
def test_the_callback_warns_once(tmp_path, rate):
    model = rf.make_reversible(tiny("llama", dtype=torch.bfloat16), rf.Midpoint())
    callback = rf.ReversibleCallback(verify=False, memory=False)
    options = arguments(tmp_path, learning_rate=rate, max_steps=3)
    trainer = Trainer(model, options, train_dataset=token_rows(), callbacks=[callback])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    said = [str(one.message) for one in caught if "will not move" in str(one.message)]
    assert len(said) == (rate < 1e-3)
    assert all("about the learning rate (1e-05), is below half a unit in their last place" in one for one in said)
