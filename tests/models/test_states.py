import pytest
import torch

import revformers as rf
from revformers.engine.fixed_point import INT64, FixedPoint
from revformers.engine.state_format import StateFormat
from revformers.models.parts import require_reversible
from revformers.models.states import run_in_64_bits
from tests.tiny_models import batch, tiny


def reversible(dynamics, states="auto", scale=1.0, **options):
    model = rf.make_reversible(tiny("llama", **options), dynamics, states=states)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(scale)
    return model


def largest(model):
    """The largest magnitude by the hidden states that transformers hands out, which are those of the recurrence."""
    with torch.no_grad():
        return max(
            state.abs().max().item() for state in model(**batch(model), output_hidden_states=True).hidden_states[:-1]
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_format_decides_how_a_pass_holds_its_states(dtype):
    model = reversible(rf.Midpoint(), "auto:15", dtype=dtype)
    for states, expected in (
        ("auto:15", INT64 if dtype == torch.float32 else FixedPoint(torch.int32, 15)),
        ("int32", FixedPoint(torch.int32, 16)),
        ("int64", INT64),
    ):
        rf.set_states(model, states)
        model(**batch(model))
        assert require_reversible(model).fixed_point == expected


def gradients(model, policy):
    if policy.startswith("budget"):
        recompute = policy.partition(":")[2]
        smallest = rf.smallest_budget(model, *batch(model)["input_ids"].shape, recompute)
        policy = rf.Budget(int(1.5 * smallest), recompute)
    rf.set_activations(model, policy)
    model.zero_grad()
    loss = model(**batch(model)).loss
    loss.backward()
    return [loss.detach(), *(weight.grad for weight in model.parameters())]


@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    "dynamics",
    [rf.Midpoint(), rf.BlendedMidpoint("1/3", readout="mean"), rf.Leapfrog(), rf.Hamiltonian()],
    ids=lambda dynamics: dynamics.name,
)
def test_in_32_bits_every_policy_gives_the_same_gradients_to_the_bit(family, dynamics):
    model = rf.make_reversible(tiny(family, initializer_range=0.2), dynamics, states="int32")
    stored = gradients(model, "store")
    for policy in ("rebuild", "checkpoint", "offload", "budget:rebuild", "budget:checkpoint"):
        assert all(map(torch.equal, gradients(model, policy), stored)), policy
    rf.set_states(model, "int64")
    others = gradients(model, "store")
    assert not all(map(torch.equal, others, stored)), "another format rounds in another way"
    assert torch.allclose(others[0], stored[0], atol=1e-3)


@pytest.mark.parametrize("policy", ["store", "rebuild", "checkpoint"])
def test_a_pass_keeps_the_format_that_it_began_with(policy):
    """One loss of two passes in different formats, which is set to a third before its backward pass."""
    model = rf.make_reversible(tiny("llama", dtype=torch.bfloat16), rf.BlendedMidpoint("1/4"), policy, states="int32")

    def of_passes(*formats):
        model.zero_grad()
        losses = []
        for states in formats:
            rf.set_states(model, states)
            losses.append(model(**batch(model)).loss)
        rf.set_states(model, "int32:8")
        sum(losses).backward()
        return [weight.grad.clone() for weight in model.parameters()]

    found = of_passes("int32", "int64")
    rf.set_activations(model, rf.Store())
    assert all(map(torch.equal, found, of_passes("int32", "int64")))
    assert not all(map(torch.equal, found, of_passes("int32:8", "int32:8"))), "the negative control"


def test_a_budget_counts_the_bytes_of_the_states():
    model = rf.make_reversible(tiny("llama", num_hidden_layers=12), rf.Midpoint())
    shape = batch(model)["input_ids"].shape
    elements = shape.numel() * model.config.hidden_size
    sizes = {}
    for states, pair in (("int64", 16 * elements), ("int32", 8 * elements)):
        rf.set_states(model, states)
        sizes[states] = rf.smallest_budget(model, *shape)
        assert sizes[states] == pair
        rf.set_activations(model, rf.Budget(pair))
        model(**batch(model)).loss.backward()
        assert rf.budget_report(model).kept == pair
    rf.set_states(model, "auto")
    with torch.autocast("cpu", torch.bfloat16):
        assert rf.smallest_budget(model, *shape) == sizes["int32"]
    rf.set_states(model, "int64")
    rf.set_activations(model, rf.Budget(sizes["int32"]))
    with pytest.raises(rf.errors.UserError, match="too small"):
        model(**batch(model))


@pytest.mark.parametrize("states", ["int16", "auto:99"])
def test_an_unknown_format_is_refused_and_changes_nothing(states):
    model = reversible(rf.Midpoint(), "auto:15")
    with pytest.raises(ValueError, match=r"states|digits"):
        rf.set_states(model, states)
    assert require_reversible(model).states == StateFormat("auto", 15)
    with pytest.raises(ValueError, match="is an ordinary network"):
        rf.set_states(rf.make_residual(model), "auto")


@pytest.mark.parametrize(("scale", "digits"), [(1.0, 16), (1e6, None)])
@pytest.mark.parametrize(("before", "kind"), [("auto:12", "auto"), ("int64", "auto"), ("int32", "int32")])
def test_the_chosen_point_leaves_head_room_and_no_more(scale, digits, before, kind):
    model = reversible(rf.Midpoint(), before, scale)
    chosen = rf.choose_states(model, batch(model), head_room=3.0)
    assert chosen == require_reversible(model).states
    assert (chosen.kind, digits or chosen.fraction_bits) == (kind, chosen.fraction_bits)
    magnitude = 3 * largest(model)
    assert magnitude <= chosen.in_32_bits.maximum_magnitude
    assert digits or magnitude > StateFormat("auto", chosen.fraction_bits + 1).in_32_bits.maximum_magnitude


def test_dynamics_whose_steps_add_up_more_get_more_range():
    digits = [
        rf.choose_states(reversible(dynamics, scale=1e6), batch(tiny("llama"))).fraction_bits
        for dynamics in (rf.Midpoint(), rf.Leapfrog())
    ]
    assert digits[1] < digits[0] < 16


@pytest.mark.parametrize(
    "dynamics",
    [rf.Midpoint(), rf.Leapfrog(), rf.Hamiltonian(), rf.BlendedMidpoint("1/2")],
    ids=lambda dynamics: dynamics.name,
)
def test_states_out_of_range_name_the_remedy_and_the_remedy_helps(dynamics):
    model = reversible(dynamics, "int32", scale=1e6)
    with pytest.raises(
        rf.StateRangeError, match=r"states: int64 in a recipe.*revformers\.choose_states\(model, batch\)"
    ):
        model(**batch(model))
    rf.choose_states(model, batch(model), head_room=2)
    assert rf.verify_gradients(model, batch(model)).bit_exact
    assert require_reversible(model).fixed_point.dtype == torch.int32
    rf.set_states(model, "int64")
    assert rf.verify_gradients(model, batch(model)).bit_exact


def test_choosing_leaves_no_trace_but_the_format():
    model = reversible(rf.Midpoint(), dropout=0.1)
    stack, random_state = require_reversible(model), torch.get_rng_state()
    stack.largest_magnitude = 2.5
    rf.choose_states(model, batch(model))
    assert stack.largest_magnitude == 2.5
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training


def test_what_32_bits_cannot_hold_is_told_with_the_remedy():
    model = reversible(rf.Midpoint(), scale=1e7)
    with pytest.raises(ValueError, match=r'32-bit states .* revformers\.set_states\(model, "int64"\)'):
        rf.choose_states(model, batch(model), head_room=100)
    assert require_reversible(model).states == StateFormat()


def test_a_pass_without_states_says_nothing_about_their_format():
    model = reversible(rf.Midpoint(), "auto:12", scale=1e6)
    with rf.ordinary(model), pytest.raises(ValueError, match=r"no states .* outside of revformers\.ordinary"):
        rf.choose_states(model, batch(model))
    assert require_reversible(model).states == StateFormat("auto", 12)


def test_head_room_is_a_number():
    model = reversible(rf.Midpoint())
    with pytest.raises(TypeError, match="head room of states is a number, not '4'"):
        rf.choose_states(model, batch(model), "4")


@pytest.mark.parametrize("head_room", [1.9, float("inf"), float("nan")])
def test_head_room_covers_at_least_the_sum_of_two_terms(head_room):
    model = reversible(rf.Midpoint())
    with pytest.raises(ValueError, match="head room of states is at least 2"):
        rf.choose_states(model, batch(model), head_room)


def test_a_run_in_64_bits_gives_the_format_back_after_an_error_too():
    stack = require_reversible(reversible(rf.Midpoint(), "auto:12"))
    stack.largest_magnitude = 2.5

    def failing():
        assert stack.states == StateFormat("int64")
        raise KeyError

    with pytest.raises(KeyError):
        run_in_64_bits(stack, failing)
    assert (stack.states, stack.largest_magnitude) == (StateFormat("auto", 12), 2.5)
