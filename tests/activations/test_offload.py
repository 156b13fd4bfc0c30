import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import revformers as rf
from revformers.activations.checkpoint import CheckpointedPass
from revformers.activations.offload import OffloadedPass
from revformers.engine.states import StatePair
from tests.activations.kept import Between, between_the_passes
from tests.engine.network import DEPTH, Network, equal


def test_on_a_cpu_it_is_checkpointing():
    assert between_the_passes(rf.Offload()) == between_the_passes(rf.Checkpoint()) == Between(DEPTH, 0, 2 * DEPTH)
    rf.Offload().check(rf.Residual())


def test_the_input_lies_on_the_host_until_it_is_asked_for():
    device = torch.device("xpu")
    with FakeTensorMode():
        forward_pass = OffloadedPass(StatePair.empty(device))
        hidden = torch.empty(2, 3, 4, device=device, dtype=torch.bfloat16)
        source = forward_pass._keep(hidden)
        held = [cell.cell_contents for cell in source.__closure__ if isinstance(cell.cell_contents, torch.Tensor)]
        assert [tensor.device.type for tensor in held] == ["cpu"]
        assert (source().device.type, source().dtype, source().shape) == ("xpu", torch.bfloat16, (2, 3, 4))
        # Checkpointing holds the tensor itself.
        assert CheckpointedPass._keep(forward_pass, hidden)() is hidden


@pytest.mark.gpu
def test_gradients_on_a_gpu_are_the_stored_ones():
    network = Network(dropout=0.3).to("cuda")
    network.embedding = network.embedding.detach().to("cuda").requires_grad_()
    stored = network.gradients(network.run(rf.Midpoint(), rf.Store()))
    assert equal(network.gradients(network.run(rf.Midpoint(), rf.Offload())), stored)
