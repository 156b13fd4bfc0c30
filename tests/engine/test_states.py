from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revformers.dynamics.base import Coefficients
from revformers.engine.fixed_point import INT64, FixedPoint
from revformers.engine.packing import packed_size
from revformers.engine.states import StatePair

INT32 = FixedPoint(torch.int32, 16)
LIMIT = int(INT64.maximum_magnitude) << INT64.fraction_bits


def fractions(largest: int) -> st.SearchStrategy[Fraction]:
    return st.builds(Fraction, st.integers(-largest, largest), st.integers(1, 256))


contracting_or_not = st.one_of(
    st.sampled_from([Fraction(1), Fraction(-1), Fraction(1, 256), Fraction(-1, 256), Fraction(1, 3), Fraction(1024)]),
    fractions(1024).filter(lambda a: a != 0 and abs(a) >= Fraction(1, 256)),
)


def magnitudes(largest):
    """Integers up to `largest`, often at its edge."""
    extremes = st.sampled_from([0, 1, -1, largest, -largest, largest - 1, largest // 2 + 1, -(largest // 2)])
    return st.one_of(extremes, st.integers(-largest, largest), st.integers(-600, 600))


@st.composite
def steps(draw):
    fixed_point = draw(st.sampled_from([INT64, INT32]))
    coefficients = Coefficients(
        previous=draw(contracting_or_not),
        current=draw(fractions(512)),
        update=draw(st.sampled_from([1.0, 0.25, 0.3, 2.0])),
    )
    # What `RangeCheck` lets pass: the sum of the terms is within the range.
    weights = abs(coefficients.previous) + abs(coefficients.current) + Fraction(coefficients.update)
    most = min(fixed_point.maximum_magnitude, float(Fraction(fixed_point.largest_sum) / weights))
    integers = magnitudes(int(most * 2**fixed_point.fraction_bits))
    most_of_update = torch.tensor(most).bfloat16().item() * (1 - 2**-7)
    updates = st.one_of(
        st.sampled_from([0.0, -0.0, most_of_update, -most_of_update, 2.0**-31, 1e-38]),
        st.floats(-1, 1, width=32).map(lambda share: share * most_of_update),
    )
    shape = draw(st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 5)))
    count = shape[0] * shape[1] * shape[2]
    previous, current = (
        torch.tensor(draw(st.lists(integers, min_size=count, max_size=count)), dtype=fixed_point.dtype)
        for _ in range(2)
    )
    update = torch.tensor(draw(st.lists(updates, min_size=count, max_size=count)), dtype=torch.float32)
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    return StatePair(previous.view(shape), current.view(shape), fixed_point), update.view(shape).to(dtype), coefficients


@given(steps())
@settings(max_examples=150, deadline=None)
def test_retreat_undoes_advance_to_the_bit(step):
    before, update, coefficients = step
    pair, previous, current = before.copy(), before.previous, before.current
    side_information = pair.advance(coefficients, update, keep_side_information=True)
    assert torch.equal(pair.previous, current)
    assert pair.retreat(coefficients, update, side_information) in (None, True)
    assert torch.equal(pair.previous, previous)
    assert torch.equal(pair.current, current)


@given(steps(), st.sampled_from(["previous", "current"]), st.sampled_from([1, -1, 5]))
@settings(max_examples=150, deadline=None)
def test_no_error_in_a_state_is_lost_by_undoing_the_step(step, state, error):
    before, update, coefficients = step
    pair, previous, current = before.copy(), before.previous, before.current
    side_information = pair.advance(coefficients, update, keep_side_information=True)
    getattr(pair, state).view(-1)[0] += error
    possible = pair.retreat(coefficients, update, side_information)
    assert (possible is None) == (abs(coefficients.previous) <= 1)
    same = torch.equal(pair.previous, previous) and torch.equal(pair.current, current)
    assert not same or not possible


@given(steps())
@settings(max_examples=75, deadline=None)
def test_a_step_equals_the_recurrence_in_exact_fractions(step):
    before, update, coefficients = step
    pair, previous, current = before.copy(), before.previous, before.current
    pair.advance(coefficients, update, keep_side_information=False)
    scale = coefficients.update * 2.0**pair.fixed_point.fraction_bits
    for earlier, now, added, after in zip(
        previous.flatten().tolist(),
        current.flatten().tolist(),
        update.flatten().tolist(),
        pair.current.flatten().tolist(),
        strict=True,
    ):
        expected = coefficients.previous * earlier + coefficients.current * now + Fraction(added * scale)
        # Two roundings to nearest, one towards zero, and float32's own rounding of the scaled update.
        assert abs(after - expected) <= 2 + abs(Fraction(added * scale)) * Fraction(1, 2**22)


@given(steps())
@settings(max_examples=75, deadline=None)
def test_side_information_has_the_theoretical_size(step):
    pair, update, coefficients = step
    side_information = pair.advance(coefficients, update, keep_side_information=True)
    if abs(coefficients.previous) >= 1:
        assert side_information is None
    else:
        assert side_information.numel() == packed_size(pair.previous.numel(), coefficients.side_information_bits)


@pytest.mark.parametrize("denominator", [2, 3, 4, 7, 16, 256])
def test_without_side_information_a_contraction_loses_the_state(denominator):
    previous = torch.arange(-600, 600).view(1, 1, -1)
    pair = StatePair(previous.clone(), torch.zeros_like(previous), INT64)
    coefficients = Coefficients(previous=Fraction(1, denominator), current=Fraction(0), update=1.0)
    update = torch.zeros(previous.shape)
    pair.advance(coefficients, update, keep_side_information=True)
    pair.retreat(coefficients, update, None)
    assert not torch.equal(pair.previous, previous)


@pytest.mark.parametrize("fixed_point", [INT64, INT32])
def test_states_are_read_rounded_once(fixed_point):
    """Among them two whose sum leaves 32 bits."""
    numbers = torch.tensor([[[1.0, -3.5, 2.0**-fixed_point.fraction_bits, 16000]]], dtype=torch.float64)
    pair = StatePair(fixed_point.quantise(numbers), fixed_point.quantise(2 * numbers), fixed_point)
    assert torch.equal(pair.read_previous(torch.float64), numbers)
    assert torch.equal(pair.read_current(torch.float64), 2 * numbers)
    assert torch.equal(pair.read_mean(torch.float64), 1.5 * numbers)
    assert torch.equal(pair.read_current(torch.bfloat16), (2 * numbers).bfloat16())


def test_a_copy_has_its_own_memory_and_an_empty_pair_none():
    pair = StatePair(torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64), INT64)
    copy = pair.copy()
    pair.previous.add_(7)
    pair.current.add_(7)
    assert (copy.previous.tolist(), copy.current.tolist()) == ([0, 0], [1, 1])
    assert StatePair.empty(torch.device("cpu")).current.numel() == 0


def test_checksum_sees_one_unit_in_either_state():
    pair = StatePair(*torch.randint(-LIMIT, LIMIT, (2, 2, 3, 4)), INT64)
    before = pair.checksum()
    pair.previous[1, 2, 3] += 1
    assert not torch.equal(before, pair.checksum())
    pair.previous[1, 2, 3] -= 1
    assert torch.equal(before, pair.checksum())
    pair.current[0, 0, 0] -= 1
    assert not torch.equal(before, pair.checksum())
