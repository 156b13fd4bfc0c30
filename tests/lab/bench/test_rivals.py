import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lab.bench import process
from lab.bench.arm_names import ArmName
from lab.bench.workload import MeasuredWorkload, llama_config
from revformers.dynamics import Midpoint
from revformers.private_api import ATTENTION_KERNELS
from revformers.setup import CHECKPOINT, STORE

LAYERS = 5
WORKLOAD = MeasuredWorkload(llama_config(LAYERS, 16, 13, 8), sequence_length=8)


def setup(name):
    return ArmName.parse(name).setup(Midpoint())


class Attention(TorchDispatchMode):
    """Counts the calls of fused attention kernels."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, kernel, types, arguments=(), keywords=None):
        self.calls += kernel.name() in ATTENTION_KERNELS
        return kernel(*arguments, **keywords or {})


@pytest.fixture(scope="module")
def model():
    return WORKLOAD.build_model()


def step(model):
    """Return the gradients, how often every layer's MLP was evaluated, and the number of attention kernels."""
    evaluations = dict.fromkeys(range(LAYERS), 0)

    def count(layer):
        return lambda *_: evaluations.update({layer: evaluations[layer] + 1})

    handles = [layer.mlp.register_forward_pre_hook(count(index)) for index, layer in enumerate(model.model.layers)]
    model.zero_grad()
    with Attention() as attention:
        WORKLOAD.forward_backward(model, WORKLOAD.build_batch())
    for handle in handles:
        handle.remove()
    return [parameter.grad.clone() for parameter in model.parameters()], list(evaluations.values()), attention.calls


@pytest.mark.parametrize(
    ("name", "evaluations", "attention"),
    [
        ("plain_checkpoint", [2] * LAYERS, 2 * LAYERS),
        ("plain_selective", [2] * LAYERS, LAYERS),
        ("plain_every:2", [2, 1, 2, 1, 2], LAYERS + 3),
        ("plain_every:3", [2, 1, 1, 2, 1], LAYERS + 2),
        ("plain_store", [1] * LAYERS, LAYERS),
    ],
)
def test_a_rival_computes_again_what_it_says_and_the_same_gradients(name, evaluations, attention, model):
    if "every" in name:
        pytest.importorskip("transformers", minversion="5.24", reason="5.17 has no every_n_layers")
    stored = step(STORE.apply(model))[0]
    for _ in range(2):  # and another setup leaves nothing of it
        gradients, counted, kernels = step(setup(name).apply(model))
        assert all(map(torch.equal, gradients, stored))
        assert (counted, kernels) == (evaluations, attention)
        CHECKPOINT.apply(model)


@pytest.mark.parametrize("name", ["plain_selective", "plain_every:3", "plain_store", "rebuild:2", "rebuild:0:int32"])
def test_a_process_is_told_of_it_as_it_is(name):
    assert process._setup(process._written(setup(name))) == setup(name)


def test_an_older_transformers_is_named(model, monkeypatch):
    monkeypatch.setattr(type(model), "activation_checkpointing_enable", lambda self, kwargs: None, raising=False)
    with pytest.raises(ValueError, match=r"with every_n_layers needs a transformers .* such as 5.24"):
        setup("plain_every:2").apply(model)
