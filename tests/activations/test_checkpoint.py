import pytest
import torch
from torch import nn

import revformers as rf
from revformers.activations.checkpoint import checkpointed
from tests.activations.kept import Between, between_the_passes, memory
from tests.engine.network import DEPTH, Network, equal


def test_the_inputs_of_layers_are_kept_alone():
    assert between_the_passes(rf.Checkpoint()) == Between(DEPTH, 0, evaluations=2 * DEPTH)
    rf.Checkpoint().check(rf.Residual())


def test_a_weight_that_changes_between_the_passes_is_refused():
    network = Network()
    loss = network.run(rf.Residual(), rf.Checkpoint())
    with torch.no_grad():
        network.layers[3][1].weight.mul_(2)
    with pytest.raises(rf.RebuildMismatchError, match=r"Since the forward pass 1\.weight \[48, 16\] was changed"):
        network.gradients(loss)


@pytest.mark.parametrize("hooks", [None, torch.autograd.graph.save_on_cpu], ids=["stored", "under hooks"])
def test_part_of_a_layer_keeps_its_input_as_the_hooks_around_it_say(hooks):
    part, inner, packed = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)), [], []
    part[0].register_forward_hook(lambda _, __, output: inner.append(memory(output)))
    hidden = torch.randn(2, 4, requires_grad=True)
    expected = torch.autograd.grad(part(hidden).sin().sum(), [hidden, *part.parameters()])
    inner.clear()

    def pack(tensor):
        packed.append(tensor.shape)
        return tensor

    if hooks is None:
        update = checkpointed("layer 2", part, hidden)
    else:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            update = checkpointed("layer 2", part, hidden)
        assert packed == [hidden.shape]
    assert inner[0].expired()
    assert equal(torch.autograd.grad(update.sin().sum(), [hidden, *part.parameters()]), expected)
