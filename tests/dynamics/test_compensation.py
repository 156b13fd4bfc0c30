from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revformers.dynamics.compensation import compensating_step_sizes

blends_and_updates = st.lists(
    st.tuples(st.integers(1, 8).map(lambda bits: Fraction(1, 2**bits)), st.floats(-10, 10)), min_size=1, max_size=12
)


def run(blends, updates, steps):
    """The states of the recurrence with these updates, whatever the states."""
    previous = current = 0.0
    states = [current]
    for blend, update, step in zip(blends, updates, steps, strict=True):
        previous, current = current, float(blend) * previous + float(1 - blend) * current + step * update
        states.append(current)
    return states


@given(blends_and_updates)
def test_nothing_is_lost_from_the_sum_of_all_updates(pairs):
    blends, updates = zip(*pairs, strict=True)
    states = run(blends, updates, compensating_step_sizes(blends))
    assert states[-1] == pytest.approx(sum(updates), abs=1e-9)
    # Before the end a state is ahead of the ordinary network's by a share of its last update, at most the next blend.
    for layer in range(1, len(blends)):
        last_update = states[layer] - states[layer - 1]
        ahead = states[layer] - sum(updates[:layer])
        assert abs(ahead) <= float(blends[layer]) * abs(last_update) + 1e-9


def test_without_compensation_the_losses_add_up():
    blends, updates = [Fraction(1, 16)] * 30, [1.0] * 30
    assert run(blends, updates, compensating_step_sizes(blends))[-1] == pytest.approx(30)
    assert run(blends, updates, [1.0] * 30)[-1] == pytest.approx(30 / (1 + 1 / 16), rel=1e-2)


def test_the_middle_of_a_stack_of_one_blend_takes_one_plus_the_blend():
    steps = compensating_step_sizes([Fraction(1, 4)] * 40)
    assert steps[0] == pytest.approx(1.25)
    assert steps[-1] == 1


def test_blends_above_a_half_are_left_alone():
    assert compensating_step_sizes([Fraction(1)] * 5) == [1.0] * 5
