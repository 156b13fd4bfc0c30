import gc
import weakref

import pytest
import torch
from torch import nn

import revformers as rf
from revformers.engine.states import StatePair
from revformers.engine.tape import Tape
from revformers.engine.ticket import kept
from tests.engine.network import WIDTH, Network, each_reversible, equal


@each_reversible
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("state", ["previous", "current"])
def test_one_unit_in_one_state_is_detected(dynamics, state, seed, monkeypatch):
    network = Network(seed=seed)
    loss = network.run(dynamics, "rebuild")
    retreat = StatePair.retreat

    def corrupt(self, *arguments):
        retreat(self, *arguments)
        getattr(self, state)[0, 1, 2] += 1
        monkeypatch.setattr(StatePair, "retreat", retreat)

    monkeypatch.setattr(StatePair, "retreat", corrupt)
    with pytest.raises(rf.RebuildMismatchError, match=r"Layer \d was evaluated again to other values .* deterministic"):
        network.gradients(loss)


@pytest.mark.parametrize("blend", ["1/2", "2/3", "-1/16", "1/256"])
@pytest.mark.parametrize("bit", range(8))
def test_one_bit_of_the_side_information_is_detected(blend, bit, monkeypatch):
    network, dynamics = Network(), rf.BlendedMidpoint(blend)
    stored = network.gradients(network.run(dynamics, "store"))
    loss = network.run(dynamics, "rebuild")
    retreat, flipped = StatePair.retreat, []

    def flip(self, coefficients, update, side_information):
        if not flipped:
            octets = side_information.view(-1)
            flipped.append(octets[bit * octets.numel() // 8])
            octets[bit * octets.numel() // 8] ^= 1 << bit
        return retreat(self, coefficients, update, side_information)

    with monkeypatch.context() as patch:
        patch.setattr(StatePair, "retreat", flip)
        with pytest.raises(rf.RebuildMismatchError, match=r"Layer \d was evaluated again to other values"):
            network.gradients(loss)
    assert flipped
    assert equal(network.gradients(network.run(dynamics, "rebuild")), stored), "the next step is right"


def test_weights_changed_between_forward_and_backward_are_detected():
    network = Network()
    loss = network.run(rf.Midpoint(), "rebuild")
    with torch.no_grad():
        network.layers[3][1].weight.mul_(1.001)
    with pytest.raises(rf.RebuildMismatchError):
        network.gradients(loss)


def test_a_layer_that_saves_other_tensors_the_second_time_is_detected():
    network = Network()
    loss = network.run(rf.Midpoint(), "rebuild")
    network.layers[2].train(False)
    network.layers[2][3] = nn.Sigmoid()
    with pytest.raises(rf.RebuildMismatchError, match=r"[Ll]ayer 2"):
        network.gradients(loss)


@each_reversible
def test_retained_graphs_and_partial_gradients_wind_the_tape_both_ways(dynamics):
    network = Network(dropout=0.3)
    stored = network.gradients(network.run(dynamics, "store"))
    loss = network.run(dynamics, "rebuild")
    middle = list(network.layers[3].parameters())
    partial = torch.autograd.grad(loss, middle, retain_graph=True)
    assert equal(partial, stored[1 + 3 * len(middle) : 1 + 4 * len(middle)])
    assert equal(network.gradients(loss, retain_graph=True), stored)
    assert equal(torch.autograd.grad(loss, middle, retain_graph=True), partial)
    assert equal(network.gradients(loss), stored)


def test_tensors_may_be_asked_for_in_any_order():
    network, nodes = Network(), []
    for layer in network.layers:
        layer[2].register_forward_hook(lambda _, __, output: nodes.append(output.grad_fn))
    loss = network.run(rf.Midpoint(), "store")
    expected, nodes[:] = [node._saved_self for node in nodes], []
    stored = network.gradients(loss)
    loss = network.run(rf.Midpoint(), "rebuild")
    for layer in (1, 4, 0):
        assert torch.equal(nodes[layer]._saved_self, expected[layer])
    assert equal(network.gradients(loss), stored)


def test_two_forward_passes_before_one_backward():
    network = Network(dropout=0.3)
    stored = network.gradients(network.run(rf.Leapfrog(), "store", 1) + network.run(rf.Leapfrog(), "store", 2))
    rebuilt = network.gradients(network.run(rf.Leapfrog(), "rebuild", 1) + network.run(rf.Leapfrog(), "rebuild", 2))
    assert equal(rebuilt, stored)


@pytest.mark.parametrize("frozen", [[0], [5], [2, 3], [0, 1, 2, 3, 4], [1, 4]], ids=str)
@pytest.mark.parametrize("embedding", [True, False], ids=["embedding trains", "embedding frozen"])
def test_frozen_layers(frozen, embedding):
    network = Network(dropout=0.3)
    network.embedding.requires_grad_(embedding)
    for index in frozen:
        network.layers[index].requires_grad_(False)
    trainable = [tensor for tensor in [network.embedding, *network.layers.parameters()] if tensor.requires_grad]
    dynamics = rf.BlendedMidpoint("1/4")
    stored = torch.autograd.grad(network.run(dynamics, "store"), trainable)
    assert equal(torch.autograd.grad(network.run(dynamics, "rebuild"), trainable), stored)


def test_autocast_is_replayed_outside_its_block():
    network = Network(dropout=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        stored_loss = network.run(rf.Midpoint(), "store")
        loss = network.run(rf.Midpoint(), "rebuild")
    assert equal(network.gradients(loss), network.gradients(stored_loss))
    assert not torch.is_autocast_enabled("cpu")


def test_only_the_graph_keeps_the_tape_and_backward_frees_it():
    network = Network()
    tapes = []
    make = Tape.__init__

    def remember(self, states):
        make(self, states)
        tapes.append(weakref.ref(self))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tape, "__init__", remember)
        loss = network.run(rf.Midpoint(), "rebuild")
        dropped = network.run(rf.Midpoint(), "rebuild")
    gc.disable()
    try:
        assert tapes[0]() is not None
        network.gradients(loss)
        assert tapes[0]() is None, "the backward pass frees the states although the loss is still there"
        del dropped
        assert tapes[1]() is None, "so does dropping the loss, without the garbage collector"
    finally:
        gc.enable()


def test_an_exception_in_a_layer_leaves_nothing_behind():
    network = Network()
    stored = network.gradients(network.run(rf.Midpoint(), "store"))

    def fail(*_):
        raise KeyError("in the middle")

    handle = network.layers[4].register_forward_hook(fail)
    with pytest.raises(KeyError):
        network.run(rf.Midpoint(), "rebuild")
    handle.remove()
    loss = network.run(rf.Midpoint(), "rebuild")
    handle = network.layers[1].register_forward_hook(fail)
    words = r"Layer 1 cannot be evaluated again \(KeyError: 'in the middle'\).* hook fail of the layer was added"
    with pytest.raises(rf.RebuildMismatchError, match=words):
        network.gradients(loss, retain_graph=True)
    handle.remove()
    assert equal(network.gradients(network.run(rf.Midpoint(), "rebuild")), stored)
    assert equal(network.gradients(loss), stored), "the interrupted backward pass can be run again"


def kept_input(layer):
    """Return a layer's input, which a tape keeps and that it may be evaluated at again, the update, and the tape."""
    tape, inputs = Tape.without_states(torch.device("cpu")), []

    def keep(hidden):
        inputs.append(hidden)
        return kept(hidden)

    update = tape.evaluate("layer 0", None, layer, torch.randn(1, 2, WIDTH, requires_grad=True) * 1, keep=keep)
    return inputs[0], update, tape


def test_a_step_whose_input_is_kept_is_computed_from_it_and_not_undone():
    layer = Network().layers[0]
    hidden, update, tape = kept_input(layer)
    found = torch.autograd.grad(update.sin().sum(), layer.parameters())
    assert equal(found, torch.autograd.grad(layer(hidden).sin().sum(), layer.parameters()))
    assert tape.position == tape.states.current.numel() == 0


def test_a_kept_input_that_was_written_to_is_refused():
    hidden, update, _ = kept_input(Network().layers[0])
    hidden.add_(1)
    with pytest.raises(rf.RebuildMismatchError, match="The input of layer 0, which is kept, was written to"):
        update.sum().backward()


@pytest.mark.parametrize(
    ("keep", "error", "message"),
    [
        (None, ValueError, r"no states to rebuild the input of layer 0 from; give evaluate a function keep"),
        (lambda hidden: hidden, TypeError, "keep returns a Tensor for layer 0; it must return a function"),
        (lambda hidden: None, TypeError, "keep returns a NoneType for layer 0"),
    ],
)
def test_an_input_that_could_not_be_had_again_is_refused_in_the_forward_pass(keep, error, message):
    hidden = torch.randn(1, 2, WIDTH, requires_grad=True)
    with pytest.raises(error, match=message):
        Tape.without_states(hidden.device).evaluate("layer 0", None, torch.sin, hidden, keep=keep)


def test_steps_that_save_nothing_are_undone_on_the_way():
    network = Network()
    network.layers[2], network.layers[5] = (AddBias() for _ in range(2))
    stored = network.gradients(network.run(rf.Midpoint(), "store"))
    assert equal(network.gradients(network.run(rf.Midpoint(), "rebuild")), stored)


class AddBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(WIDTH))

    def forward(self, hidden):
        return hidden + self.bias


def test_a_layer_that_takes_gradients_while_it_is_evaluated_is_refused():
    hidden = torch.randn(1, 2, WIDTH, requires_grad=True)

    def field(hidden):
        return torch.autograd.grad(hidden.sin().sum(), hidden)[0]

    with pytest.raises(rf.NotReversibleError, match=r"torch\.autograd\.grad in its forward"):
        Tape.without_states(hidden.device).evaluate("layer 0", None, field, hidden, keep=kept)


@pytest.mark.parametrize("steps_in_backward", [True, False])
def test_where_weights_are_stepped_in_the_backward_pass_a_change_is_found_before_the_first_gradient(steps_in_backward):
    network = Network()
    weight = network.layers[5][1].weight
    if steps_in_backward:
        weight.register_post_accumulate_grad_hook(lambda _: None)
    loss = network.run(rf.Midpoint(), "rebuild")
    with torch.no_grad():
        network.layers[0][1].weight.mul_(2)
    words = "Layer 0 is no longer what it was" if steps_in_backward else "A weight of layer 0 was changed"
    with pytest.raises(rf.RebuildMismatchError, match=words):
        loss.backward()
    assert (weight.grad is None) == steps_in_backward
