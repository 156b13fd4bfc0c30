from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import revformers as rf
from revformers.dynamics.base import Coefficients
from revformers.engine.fixed_point import INT64, FixedPoint
from revformers.engine.ops import cpu as plain
from revformers.engine.range_check import RangeCheck
from revformers.errors import StateRangeError

MIDPOINT = Coefficients(Fraction(1), Fraction(0), 1.0)
INT32 = FixedPoint(torch.int32, 16)


@pytest.mark.parametrize(
    ("value", "weight", "magnitude"),
    [
        (float("nan"), 1.0, "nan"),
        (float("-inf"), 1.0, "inf"),
        (-2 * INT64.maximum_magnitude, 1.0, "8.38861e\\+06"),
        (INT64.maximum_magnitude, 2.0, "8.38861e\\+06"),
    ],
)
def test_the_first_value_out_of_range_is_named(value, weight, magnitude):
    check = RangeCheck(INT64, torch.ones(2, 3))
    check.step("layer 0", MIDPOINT, torch.ones(2, 3), torch.ones(2, 3))
    update = torch.tensor([1.0, value, 2.0])
    check.step("layer 1", Coefficients(Fraction(1), Fraction(0), weight), update, torch.tensor([float("nan")]))
    with pytest.raises(StateRangeError, match=f"update of layer 1 has magnitude {magnitude}.*Lower the learning rate"):
        check.raise_if_exceeded()


def test_an_embedding_out_of_range_is_named():
    with pytest.raises(
        StateRangeError, match="embedding has magnitude 40000; the limit is 32512, because states are 32-bit integers"
    ):
        RangeCheck(INT32, torch.tensor([1.0, 40000.0])).raise_if_exceeded()


def test_the_limit_itself_is_in_range():
    limit = INT64.maximum_magnitude
    check = RangeCheck(INT64, torch.tensor([-limit, limit]))
    check.step("layer 0", MIDPOINT, torch.tensor([limit]), torch.tensor([limit]))
    check.raise_if_exceeded()


def test_a_wrapped_state_reads_as_an_ordinary_number_and_is_found():
    """60000 + 30000 + 5000 is 29464 modulo 2**16, which is what 32 bits with 16 of them after the point hold."""
    states = INT32.quantise(torch.tensor([30000.0]))
    leapfrog, update = rf.Leapfrog().coefficients(0), torch.tensor([5000.0])
    successor = -states
    plain.advance(successor, states, leapfrog, update, None, 16)
    read = plain.read(successor, torch.float32, 16)
    assert abs(read.item()) < 30000, "the negative control: the state itself tells nothing"
    check = RangeCheck(INT32, torch.tensor([30000.0]))
    check.step("layer 0", leapfrog, update, read)
    words = r"state after layer 0 may reach, by the sum of its terms, magnitude 95000; .*set_states\(model, \"int64\"\)"
    with pytest.raises(StateRangeError, match=words):
        check.raise_if_exceeded()


blends = st.sampled_from([Fraction(1), Fraction(-1), Fraction(1, 4), Fraction(-1, 16), Fraction(3, 7), Fraction(3, 2)])
signs = st.sampled_from([1, -1])


@given(st.floats(0.25, 0.95), st.floats(0.9, 1.1), blends, signs, signs)
@settings(deadline=None)
def test_a_sum_of_terms_is_held_to_the_range_from_both_sides(of_states, total, blend, sign, other_sign):
    """A step whose terms sum to 0.9 to 1.1 of the range, read in bfloat16, against exact fractions.

    What passes is not wrapped. What is within the range by more than bfloat16 rounds passes, and what exceeds it by as
    much does not.
    """
    weight = abs(blend) + abs(1 - blend)
    embedding = torch.tensor([sign * of_states * 2.0**15 / float(weight)])
    update = torch.tensor([other_sign * (total - of_states) * 2.0**15])
    coefficients = Coefficients(blend, 1 - blend, 1.0)
    previous, current = INT32.quantise(embedding), INT32.quantise(embedding)
    added = Fraction(INT32.quantise(update).item())
    exact = blend * previous.item() + (1 - blend) * current.item() + added
    sum_of_terms = float(weight * abs(current.item()) + abs(added)) / 2**16
    plain.advance(previous, current, coefficients, update, None, 16)
    check = RangeCheck(INT32, embedding.bfloat16())
    check.step("layer 0", coefficients, update, plain.read(previous, torch.bfloat16, 16))
    passes = check.within().item()
    assert not passes or abs(previous.item() - exact) < 10
    if sum_of_terms < INT32.largest_sum * (1 - 2.0**-7):
        assert passes
    if sum_of_terms > INT32.largest_sum * (1 + 2.0**-7):
        assert not passes


def test_in_32_bits_a_sum_at_the_limit_passes_and_one_beyond_it_does_not():
    for update, passes in ((INT32.largest_sum - 30000, True), (INT32.largest_sum - 30000 + 2**-8, False)):
        check = RangeCheck(INT32, torch.tensor([30000.0]))
        check.step("layer 0", MIDPOINT, torch.tensor([update]), torch.tensor([30000.0 + update]))
        assert check.within().item() == passes


def test_a_step_after_a_look_is_unseen():
    check = RangeCheck(INT64, torch.ones(1))
    check.raise_if_exceeded()
    assert not check.is_unseen
    check.step("layer 0", MIDPOINT, torch.ones(1), torch.ones(1))
    assert check.is_unseen


def test_a_backward_pass_that_fails_has_not_looked():
    check, hidden = RangeCheck(INT32, torch.tensor([1.0])), torch.ones(3, requires_grad=True)
    doubled = hidden * 2
    doubled.register_hook(check.in_backward)
    failing = hidden.register_hook(lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        doubled.sum().backward(retain_graph=True)
    assert check.is_unseen
    failing.remove()
    doubled.sum().backward()
    assert not check.is_unseen


def test_of_no_numbers_the_largest_is_zero():
    check = RangeCheck(INT64, torch.empty(0, 3))
    check.step("layer 0", MIDPOINT, torch.empty(0, 3), torch.empty(0, 3))
    check.raise_if_exceeded()
    assert check.largest() == 0


def test_the_end_of_the_backward_pass_reports_what_is_out_of_range():
    """As on a GPU: the hook of a state adds the check, once a pass."""
    check = RangeCheck(INT32, torch.tensor([1.0]))
    hidden = torch.ones(3, requires_grad=True)
    check.step("layer 0", MIDPOINT, torch.tensor([float("inf")]), torch.ones(3))
    doubled = hidden * 2
    for tensor in (doubled, doubled * 1):
        tensor.register_hook(check.in_backward)
    for _ in range(2):
        hidden.grad = None
        with pytest.raises(StateRangeError, match="update of layer 0 has magnitude inf"):
            (doubled * 1).sum().backward(retain_graph=True)
        assert hidden.grad is not None, "the gradients are there: it was raised at the end"
