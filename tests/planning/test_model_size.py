import pytest
import torch
from torch import nn
from transformers import AutoConfig

from lab.bench.workload import MeasuredWorkload as Measured
from lab.bench.workload import llama_config
from revformers.planning.model_size import meta_model, model_size, trained_model
from revformers.planning.step import step_memory
from revformers.setup import CHECKPOINT, STORE, Workload

CONFIG = llama_config(3, 128, 256, 256)
ORDINARY = AutoConfig.for_model(**CONFIG)


def test_parameters_are_those_of_a_real_model():
    real = Measured(CONFIG, 1, 8).build_model()
    size = model_size(meta_model(ORDINARY, 3, torch.float32), "adamw")
    assert size.parameters == size.trained == real.num_parameters()
    assert size.gradients == 4 * size.parameters


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("adafactor", torch.optim.Adafactor), ("sgd", torch.optim.SGD)]
)
def test_optimizer_states_are_those_of_torch(name, kind):
    model = nn.Sequential(nn.Linear(20, 30), nn.LayerNorm(30)).to(torch.bfloat16)
    optimizer = kind(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    held = sum(state.nbytes for state in states if state.dim())
    assert model_size(model, name).optimizer == held


def test_eight_bit_states_take_a_quarter():
    model = nn.Linear(512, 512, bias=False)
    assert model_size(model, "adamw8bit").optimizer == pytest.approx(model_size(model, "adamw").optimizer / 4, rel=0.02)


@pytest.mark.parametrize("training", ["lora", "qlora"])
def test_an_adapter_on_experts_is_planned(training):
    """PEFT asks for autocast on the device of the experts' weights, which there is none for without numbers."""
    pytest.importorskip("peft")
    config = llama_config(3, 32, 64, 64) | {"model_type": "mixtral", "num_local_experts": 4}
    workload, autocast = (
        Workload(AutoConfig.for_model(**config), precision="bfloat16", training=training),
        torch.autocast,
    )
    expert_adapters = [
        name
        for name, value in trained_model(workload, 3).named_parameters()
        if "experts" in name and value.requires_grad
    ]
    assert expert_adapters
    assert step_memory(workload, STORE, 2, 32).device.total > step_memory(workload, CHECKPOINT, 2, 32).device.total > 0
    assert torch.autocast is autocast
