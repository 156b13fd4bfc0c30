"""What must be found on a device: a wrong state, and kernels that give other values in the backward pass."""

import pytest
import torch

import revformers as rf
from revformers.engine.ops import SWITCH, _fused_wanted, kernels_for
from revformers.engine.states import StatePair
from tests.devices.passes import different, each_device, network, step
from tests.tiny_models import batch

DYNAMICS = [rf.Midpoint(), rf.BlendedMidpoint("1/4"), rf.Hamiltonian()]


@each_device(pytest.mark.thorough)
@pytest.mark.parametrize("dynamics", DYNAMICS, ids=lambda dynamics: dynamics.name)
def test_a_state_changed_by_one_unit_during_the_rebuild_is_found(monkeypatch, device, dynamics):
    retreat, changed = StatePair.retreat, []

    def retreat_and_change(self, *arguments):
        possible = retreat(self, *arguments)
        if not changed:
            self.previous.view(-1)[5] += 1
            changed.append(True)
        return possible

    monkeypatch.setattr(StatePair, "retreat", retreat_and_change)
    with pytest.raises(rf.RebuildMismatchError):
        step(network(device, dynamics), "rebuild")


def vary_by_one_unit(layer):
    """Let a layer compute with the last digit changed in every second evaluation, as a kernel that varies may."""
    evaluations = []

    def vary(module, arguments, output):
        evaluations.append(None)
        return output if len(evaluations) % 2 else output * (1 + torch.finfo(output.dtype).eps)

    layer.mlp.up_proj.register_forward_hook(vary)


@each_device(pytest.mark.thorough)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("policy", ["rebuild", "checkpoint", "offload"])
def test_a_layer_that_varies_is_refused_by_name(device, policy, dtype):
    model = network(device, dtype=dtype)
    rf.set_activations(model, policy)
    vary_by_one_unit(model.model.layers[2])
    loss = model(**batch(model)).loss
    with pytest.raises(rf.RebuildMismatchError, match="Layer 2"):
        loss.backward()


@each_device(pytest.mark.thorough)
@pytest.mark.parametrize("policy", ["rebuild", "checkpoint", "offload"])
def test_a_weight_changed_between_the_passes_is_refused(device, policy):
    model = network(device)
    rf.set_activations(model, policy)
    loss = model(**batch(model)).loss
    model.model.layers[3].mlp.up_proj.weight.data.mul_(1.5)
    with pytest.raises(rf.RebuildMismatchError, match=r"[Ll]ayer 3"):
        loss.backward()


@each_device(pytest.mark.thorough)
@pytest.mark.parametrize("blend", ["1", "1/4", "3/2", "-5/4", "2/3"])
@pytest.mark.parametrize("states", ["int32", "int64"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_fused_kernels_give_a_model_the_gradients_of_the_plain_ones(
    deterministic, monkeypatch, device, blend, states, dtype
):
    model = network(device, rf.BlendedMidpoint(blend, 0.25), states=states, dtype=dtype, dropout=0.1)
    found, used = [], []
    try:
        for switch in ("", "plain"):
            monkeypatch.setenv(SWITCH, switch)
            _fused_wanted.cache_clear()
            used.append(kernels_for(torch.zeros(1, dtype=torch.int64, device=device)).__name__)
            found.append(step(model, "rebuild"))
    finally:
        _fused_wanted.cache_clear()
    assert (used[0] != used[1]) == (device == "cuda")
    assert not different(*found)
