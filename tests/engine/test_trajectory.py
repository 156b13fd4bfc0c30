"""The tape and the other policies on a plain stack of modules, without transformers."""

import gc
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import revformers as rf
from revformers.activations import parse_policy
from revformers.engine.forward_pass import ForwardPass
from revformers.engine.states import StatePair
from revformers.engine.tape import Tape
from revformers.engine.trajectory import Trajectory

WIDTH, DEPTH = 16, 6
REVERSIBLE = [
    rf.Midpoint(),
    rf.Midpoint(0.25, readout="mean", start="zero"),
    rf.Leapfrog(0.5),
    rf.BlendedMidpoint("1/2"),
    rf.BlendedMidpoint("-1/16"),
    rf.BlendedMidpoint("2/3"),
    rf.BlendedMidpoint([1, -1, 0.5, 1.5, 0.25, 0.004]),
    rf.BlendedMidpoint.random(3),
]
each_reversible = pytest.mark.parametrize("dynamics", REVERSIBLE, ids=lambda dynamics: repr(dynamics.to_dict()))


class Network(nn.Module):
    def __init__(self, dropout=0.0, dtype=torch.float32, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(WIDTH),
                nn.Linear(WIDTH, 3 * WIDTH),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(3 * WIDTH, WIDTH),
            )
            for _ in range(DEPTH)
        ).to(dtype)
        self.embedding = torch.randn(2, 5, WIDTH, dtype=dtype, requires_grad=True)

    def run(self, dynamics, activations, seed=1):
        torch.manual_seed(seed)
        trajectory = Trajectory(dynamics, parse_policy(activations).bind(dynamics.steps(DEPTH), 1), self.embedding)
        for index, layer in enumerate(self.layers):
            trajectory.step(f"layer {index}", dynamics.coefficients(index), layer)
        return trajectory.readout().float().square().sum()

    def gradients(self, loss, **options):
        return torch.autograd.grad(loss, [self.embedding, *self.layers.parameters()], **options)

    def reference(self, dynamics):
        """The same recurrence in plain autograd: no fixed point, no policy, none of the stack's code."""
        previous = current = self.embedding
        if dynamics.start == "zero":
            previous = torch.zeros_like(current)
        for index, layer in enumerate(self.layers):
            c = dynamics.coefficients(index)
            successor = float(c.previous) * previous + float(c.current) * current + c.update * layer(current)
            previous, current = current, successor
        return ((previous + current) / 2 if dynamics.readout == "mean" else current).float().square().sum()


def equal(left, right):
    return all(map(torch.equal, left, right))


@each_reversible
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_every_policy_gives_the_stored_gradients_to_the_bit(dynamics, dtype, dropout):
    network = Network(dropout, dtype)
    loss = network.run(dynamics, "store")
    stored = network.gradients(loss)
    after = torch.get_rng_state()
    for activations in ("checkpoint", "offload", "rebuild"):
        other = network.run(dynamics, activations)
        assert torch.equal(other, loss)
        assert equal(network.gradients(other), stored)
        assert torch.equal(torch.get_rng_state(), after), "the outer random stream must not move"


@each_reversible
def test_the_gradient_is_that_of_the_recurrence(dynamics):
    network = Network(dtype=torch.float64)
    ours = network.gradients(network.run(dynamics, "rebuild"))
    for mine, reference in zip(ours, network.gradients(network.reference(dynamics)), strict=True):
        # 2**-30 of state resolution is what separates the two.
        assert torch.allclose(mine, reference, rtol=1e-6, atol=1e-6 * reference.abs().max().item())


def test_the_residual_dynamics_is_the_ordinary_network():
    network = Network(dtype=torch.float64)
    ours = network.gradients(network.run(rf.Residual(), "checkpoint"))
    ordinary = network.gradients(network.reference(rf.Residual()))
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-6) for a, b in zip(ours, ordinary, strict=True))


@each_reversible
@pytest.mark.parametrize("seed", range(5))
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


def test_no_gradients_no_tape():
    network = Network()
    with torch.no_grad():
        trajectory = Trajectory(rf.Midpoint(), Tape, network.embedding)
    assert not isinstance(trajectory._pass, Tape)


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


@each_reversible
@pytest.mark.parametrize("activations", ["rebuild", "checkpoint"])
def test_second_derivatives_are_the_stored_ones(dynamics, activations):
    def penalty(policy):
        network = Network(dropout=0.3, dtype=torch.float64)
        gradients = network.gradients(network.run(dynamics, policy), create_graph=True)
        return network.gradients(sum(gradient.square().sum() for gradient in gradients))

    stored = penalty("store")
    assert equal(penalty(activations), stored)
    assert all(gradient.count_nonzero() for gradient in stored)


@each_reversible
@pytest.mark.parametrize("activations", ["rebuild", "store"])
def test_a_second_derivative_is_that_of_the_recurrence(dynamics, activations):
    network = Network(dtype=torch.float64)
    direction = torch.randn_like(network.embedding)

    def along(run, *arguments):
        loss = run(dynamics, *arguments)
        (gradient,) = torch.autograd.grad(loss, network.embedding, create_graph=True)
        return torch.autograd.grad((gradient * direction).sum(), network.embedding)[0]

    ours, reference = along(network.run, activations), along(network.reference)
    # 2**-30 of state resolution is what separates the two.
    assert torch.allclose(ours, reference, rtol=1e-5, atol=1e-5 * reference.abs().max().item())


def test_a_field_of_another_shape_is_refused():
    trajectory = Trajectory(rf.Midpoint(), ForwardPass, torch.randn(1, 2, 4))
    with pytest.raises(ValueError, match="layer 0 maps a state"):
        trajectory.step("layer 0", rf.Midpoint().coefficients(0), lambda hidden: hidden[..., :2])


@pytest.mark.parametrize("value", [float("nan"), 1e9])
def test_values_that_fixed_point_cannot_hold_name_the_layer(value):
    network = Network()
    with torch.no_grad():
        network.layers[3][4].bias[0] = value
    with pytest.raises(rf.StateRangeError, match="update of layer 3 has magnitude"):
        network.run(rf.Midpoint(), "rebuild")


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device: numbers of meta tensors, which do not exist, are made up."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        to_host = func is torch.ops.aten._to_copy.default and str(kwargs.get("device")) == "cpu"
        reads = func in (torch.ops.aten.equal.default, torch.ops.aten._local_scalar_dense.default)
        if not (to_host or reads) or not args[0].is_meta:
            return func(*args, **kwargs)
        self.count += 1
        return torch.zeros(args[0].shape, dtype=kwargs["dtype"] or args[0].dtype) if to_host else True


@pytest.mark.parametrize("blend", ["1/4", "3/2"])
@pytest.mark.parametrize(("activations", "backward"), [("store", 0), ("checkpoint", 1), ("rebuild", 1)])
def test_a_pass_waits_for_the_device_once_whatever_the_depth(activations, backward, blend):
    """Once at the end of a forward pass, for its range check, and once at the end of a rebuild, for its checksum."""
    network = Network(dropout=0.3).to("meta")
    network.embedding = network.embedding.detach().to("meta").requires_grad_()
    with Waits() as waits:
        loss = network.run(rf.BlendedMidpoint(blend), activations)
        assert waits.count == 1
        network.gradients(loss)
    assert waits.count == 1 + backward


@pytest.mark.gpu
@pytest.mark.parametrize(("activations", "backward"), [("store", 0), ("checkpoint", 1), ("rebuild", 1)])
def test_a_pass_on_a_gpu_waits_once(activations, backward):
    network = Network(dropout=0.3).to("cuda")
    network.embedding = network.embedding.detach().to("cuda").requires_grad_()
    network.gradients(network.run(rf.BlendedMidpoint("1/4"), activations))
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True, action="always") as forward_waits:
            loss = network.run(rf.BlendedMidpoint("1/4"), activations)
        with warnings.catch_warnings(record=True, action="always") as backward_waits:
            network.gradients(loss)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    synchronisations = [
        sum("synchroniz" in str(warning.message) for warning in seen) for seen in (forward_waits, backward_waits)
    ]
    assert synchronisations == [1, backward]


@pytest.mark.gpu
@each_reversible
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_on_a_gpu_are_rebuilt_to_the_bit(dynamics, dtype):
    network = Network(dropout=0.3, dtype=dtype).to("cuda")
    network.embedding = network.embedding.detach().to("cuda").requires_grad_()
    stored = network.gradients(network.run(dynamics, "store"))
    assert equal(network.gradients(network.run(dynamics, "rebuild")), stored)
