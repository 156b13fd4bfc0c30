import io
import itertools
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.distributed
from rich.console import Console
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import SGD, Adafactor, AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.testing._internal.distributed.fake_pg import FakeStore
from torchao.optim import AdamW8bit
from transformers import Trainer

import revformers as rf
from revformers.training import rounded_updates as module
from revformers.training.finetune import finetune
from revformers.training.rounded_updates import LostUpdates, lost_updates, rounded_updates
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
    predicted = lost_updates(optimizer).share
    assert share_that_stays(parameter, optimizer, 1) == pytest.approx(predicted, abs=0.02)


def test_what_stays_in_a_step_stays_in_others_with_gradients_of_one_size():
    parameter = weights()
    optimizer = AdamW([parameter], lr=1e-5, weight_decay=0.0)
    predicted = lost_updates(optimizer).share
    assert predicted > 0.7
    assert share_that_stays(parameter, optimizer, 8) > predicted - 0.02


def test_updates_are_larger_where_a_gradient_is_zero_in_most_steps():
    """AdamW's reach (1 - 0.9) / sqrt(1 - 0.999), about 3.2 learning rates, so that fewer weights stay."""
    parameter = weights(size=2_000)
    before = parameter.detach().clone()
    optimizer = AdamW([parameter], lr=2e-5, weight_decay=0.0)
    predicted = lost_updates(optimizer).share
    parameter.grad = torch.zeros_like(parameter)
    for _ in range(3_000):
        optimizer.step()
    assert torch.equal(parameter, before)
    share = share_that_stays(parameter, optimizer, 1)
    assert share < predicted - 0.1
    larger = 2e-5 * (1 - 0.9) / (1 - 0.999) ** 0.5
    assert share == pytest.approx(lost_updates(AdamW([before], lr=larger)).share, abs=0.02)


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
    assert lost_updates(optimizer()).share == pytest.approx(share, abs=0.01)


def test_the_rate_is_that_of_the_weights_that_stay():
    groups = [{"params": [weights()], "lr": 1e-7}, {"params": [weights(torch.float32)], "lr": 1e-2}]
    lost = lost_updates(SimpleNamespace(optimizer=AdamW(groups)))
    assert (lost.rate, lost.optimizer) == (1e-7, "AdamW")
    assert lost_updates(AdamW([weights(torch.float32)])) == LostUpdates(0.0, 0.0, "AdamW")


def test_the_rate_is_the_peak_of_a_schedule():
    optimizer = AdamW([weights()], lr=1e-2)
    LambdaLR(optimizer, lambda step: step / 100)
    assert optimizer.param_groups[0]["lr"] == 0
    assert rounded_updates(optimizer, "raise it") is None
    assert rounded_updates(AdamW([weights()], lr=1e-6), "raise it").endswith("; raise it.")


@pytest.fixture
def second_of_two_processes():
    """A process group of two in which nothing is sent."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield init_device_mesh("cpu", (2,))
    torch.distributed.destroy_process_group()


def test_of_weights_on_several_processes_the_own_ones_count(second_of_two_processes):
    """FSDP2's parameters have the size of the whole and the memory of a part."""
    model = nn.Linear(8, 8, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(0.02)[4:] = 0.0
    before = lost_updates(AdamW(model.parameters(), lr=1e-6)).share
    fully_shard(model, mesh=second_of_two_processes)
    assert isinstance(model.weight, DTensor)
    assert (before, lost_updates(AdamW(model.parameters(), lr=1e-6)).share) == (0.5, 0.0)


def test_one_process_counts_and_says_it(monkeypatch):
    said = []
    lost = LostUpdates(1.0, 1e-5, "AdamW")
    monkeypatch.setattr(module, "lost_updates", lambda optimizer: said.append("counted") or lost)
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
    assert ("of the trained weights will hardly move" in output.getvalue()) == warned


@pytest.mark.parametrize("rate", [1e-5, 1e-2])
def test_the_callback_warns_once(tmp_path, rate):
    model = rf.make_reversible(tiny("llama", dtype=torch.bfloat16), rf.Midpoint())
    callback = rf.ReversibleCallback(verify=False, memory=False)
    options = arguments(tmp_path, learning_rate=rate, max_steps=3)
    trainer = Trainer(model, options, train_dataset=token_rows(), callbacks=[callback])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    said = [str(one.message) for one in caught if "will hardly move" in str(one.message)]
    assert len(said) == (rate < 1e-3)
    assert all("about the learning rate (1e-05), is below half a unit in their last place" in one for one in said)
