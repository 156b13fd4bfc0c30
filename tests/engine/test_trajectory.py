"""Every policy on a plain stack of modules."""

import warnings
from fractions import Fraction

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import revformers as rf
from revformers.dynamics import Coefficients
from revformers.engine.forward_pass import ForwardPass
from revformers.engine.state_format import parse_states
from revformers.engine.tape import Tape
from tests.engine.network import Network, each_reversible, equal, trajectory_of


@each_reversible
@pytest.mark.parametrize(
    ("dtype", "dropout", "states"),
    [(torch.float32, 0.3, "auto"), (torch.bfloat16, 0.0, "auto"), (torch.bfloat16, 0.3, "int64")],
)
def test_every_policy_gives_the_stored_gradients_to_the_bit(dynamics, dtype, dropout, states):
    """In bfloat16 with states of 32 bits, whose gradients some dynamics sum in bfloat16, and with states of 64."""
    network = Network(dropout, dtype)
    options = {"fixed_point": parse_states(states).of_pass(dtype, torch.device("cpu"))}
    loss = network.run(dynamics, "store", **options)
    stored = network.gradients(loss)
    after = torch.get_rng_state()
    for activations in ("checkpoint", "offload", "rebuild"):
        other = network.run(dynamics, activations, **options)
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


def test_no_gradients_no_tape():
    network = Network()
    with torch.no_grad():
        trajectory = trajectory_of(rf.Midpoint(), Tape, network.embedding)
    assert not isinstance(trajectory._pass, Tape)


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


@pytest.mark.parametrize(
    ("field", "found"),
    [
        (lambda hidden: hidden[..., :2], r"\[1, 2, 2\]"),
        (lambda hidden: None, "a NoneType"),
        (lambda hidden: (hidden, None), "a tuple"),
    ],
)
def test_an_update_of_another_shape_is_refused(field, found):
    trajectory = trajectory_of(rf.Midpoint(), ForwardPass, torch.randn(1, 2, 4))
    words = rf"update of layer 0 is {found}, not a tensor .*\[1, 2, 4\]; correct the layer, or ForwardPass\.evaluate"
    with pytest.raises(ValueError, match=words):
        trajectory.step("layer 0", rf.Midpoint().coefficients(0), field)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 5e6, 1e9])
def test_values_that_fixed_point_cannot_hold_name_the_layer(value):
    network = Network()
    with torch.no_grad():
        network.layers[3][4].bias[0] = value
    with pytest.raises(rf.StateRangeError, match="update of layer 3 has magnitude"):
        network.run(rf.Midpoint(), "rebuild")


@pytest.mark.parametrize("readout", ["last", "mean"])
@pytest.mark.parametrize("trained", ["all", "the last layer", "the embedding"])
def test_the_backward_pass_reports_values_out_of_range_whatever_it_differentiates(readout, trained):
    """As on a GPU; the gradients are partial, or those that a partly frozen network has."""
    network = Network()
    network.embedding = (1e7 * network.embedding.detach()).requires_grad_(trained != "the last layer")
    network.layers.requires_grad_(trained == "all")
    network.layers[-1].requires_grad_(trained != "the embedding")
    loss = network.run(rf.Midpoint(readout=readout), "rebuild", range_at_once=False)
    with pytest.raises(rf.StateRangeError, match="embedding has magnitude"):
        torch.autograd.grad(loss, network.embedding if trained == "the embedding" else network.layers[-1][4].weight)


def test_values_out_of_range_without_a_backward_pass_are_reported_by_the_forward_pass():
    network = Network().requires_grad_(False)
    network.embedding = 1e7 * network.embedding.detach()
    with pytest.raises(rf.StateRangeError, match="embedding has magnitude"):
        network.run(rf.Midpoint(), "rebuild", range_at_once=False)


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
@pytest.mark.parametrize("activations", ["store", "checkpoint", "rebuild"])
def test_a_pass_waits_for_the_device_once_whatever_the_depth(activations, blend):
    """At the end of the backward pass, for its range check and the comparisons of what was evaluated again."""
    network = Network(dropout=0.3).to("meta")
    network.embedding = network.embedding.detach().to("meta").requires_grad_()
    with Waits() as waits:
        loss = network.run(rf.BlendedMidpoint(blend), activations)
        assert waits.count == 0
        network.gradients(loss)
    assert waits.count == 1


@pytest.mark.gpu
@pytest.mark.parametrize("activations", ["store", "checkpoint", "rebuild"])
def test_a_pass_on_a_gpu_waits_once(activations):
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
    assert synchronisations == [0, 1]


@pytest.mark.gpu
@each_reversible
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_on_a_gpu_are_rebuilt_to_the_bit(dynamics, dtype):
    network = Network(dropout=0.3, dtype=dtype).to("cuda")
    network.embedding = network.embedding.detach().to("cuda").requires_grad_()
    stored = network.gradients(network.run(dynamics, "store"))
    assert equal(network.gradients(network.run(dynamics, "rebuild")), stored)


def test_transforms_and_forward_mode_are_refused():
    def run(embedding):
        trajectory = trajectory_of(rf.Midpoint(), ForwardPass, embedding)
        return trajectory.step("layer 0", rf.Midpoint().coefficients(0), torch.sin).sum()

    with pytest.raises(RuntimeError, match=r"cannot be transformed by torch\.func"):
        torch.func.grad(run)(torch.randn(1, 2, 4))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        run(torch.autograd.forward_ad.make_dual(torch.randn(1, 2, 4), torch.randn(1, 2, 4)))


def test_the_largest_magnitude_is_that_of_a_state_or_an_update():
    trajectory = trajectory_of(rf.Midpoint(), ForwardPass, torch.full((1, 2, 4), -3.0))
    trajectory.step("layer 0", rf.Midpoint().coefficients(0), lambda hidden: hidden * 4)
    trajectory.readout()
    assert trajectory.range_check.largest() == 15.0
    assert trajectory.report is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_half_precision_add_up_in_float32(dtype):
    """Each of 64 layers adds less to the gradient than half precision can add to one."""
    embedding = torch.zeros(1, 1, 4, dtype=dtype, requires_grad=True)
    trajectory = trajectory_of(rf.Residual(), ForwardPass, embedding, gradient_dtype=torch.float32)
    for layer in range(64):
        trajectory.step(f"layer {layer}", rf.Residual().coefficients(layer), lambda hidden: hidden * 2.0**-12)
    hidden = trajectory.readout()
    hidden.sum().backward()
    assert torch.equal(embedding.grad.float(), torch.full((1, 1, 4), (1 + 2.0**-12) ** 64).to(dtype).float())
    assert embedding.grad.max() > 1


def test_a_gradient_beyond_float16_is_cut_where_the_dtype_cannot_hold_it_and_goes_on_whole():
    embedding = torch.ones(1, 1, 4, dtype=torch.float16, requires_grad=True)
    dynamics = rf.Leapfrog()
    trajectory, states = trajectory_of(dynamics, ForwardPass, embedding), []
    for layer in range(2):
        states.append(trajectory.hidden)
        trajectory.hidden.retain_grad()
        trajectory.step(f"layer {layer}", dynamics.coefficients(layer), torch.zeros_like)
    # p[2] = 2 p[1] - p[0] and p[1] = 2 p[0] - p[-1], where p[-1] = p[0].
    (trajectory.readout().float() * 4e4).sum().backward()
    assert torch.equal(states[1].grad, torch.full_like(embedding, torch.finfo(torch.float16).max))
    assert torch.equal(embedding.grad, torch.full_like(embedding, 4e4))


def test_a_layer_that_no_gradient_reaches_has_none():
    embedding = torch.ones(1, 1, 4, requires_grad=True)
    trajectory = trajectory_of(rf.Midpoint(), ForwardPass, embedding)
    for layer in range(3):
        trajectory.step(f"layer {layer}", rf.Midpoint().coefficients(layer), torch.ones_like)
    trajectory.readout().sum().backward()
    assert torch.equal(embedding.grad, torch.ones_like(embedding))


@pytest.mark.parametrize("weight", [0.0, 1e-30, 1.0, 3.0])
def test_a_small_gradient_of_the_state_before_does_not_depend_on_the_weight_of_the_update(weight):
    """The weighted gradient, which the field gets, would be 0 in float32."""
    embedding = torch.zeros(1, 1, 4, requires_grad=True)
    trajectory = trajectory_of(rf.Midpoint(), ForwardPass, embedding)
    for layer in range(2):
        coefficients = Coefficients(Fraction(1), Fraction(0), weight)
        trajectory.step(f"layer {layer}", coefficients, lambda hidden: hidden.detach() + 0 * hidden)
    (trajectory.readout() * 1e-20).sum().backward()
    assert torch.allclose(embedding.grad, torch.full_like(embedding, 1e-20), atol=0)
