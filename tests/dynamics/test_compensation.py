from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revformers.dynamics.compensation import compensating_step_sizes, leads

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


@given(st.lists(st.tuples(st.integers(0, 8), st.floats(0, 1)), min_size=1, max_size=12))
def test_a_part_of_the_lead_is_that_part_of_what_the_next_one_leaves(pairs):
    """Layers of a = 1 in the middle are ahead by nothing, and those before them by as much as at the end."""
    blends, parts = [Fraction(1, 2**bits) for bits, _ in pairs], [part for _, part in pairs]
    shares = leads(blends, parts)
    assert len(shares) == len(blends) + 1
    assert shares[-1] == 0
    for layer, (blend, part) in enumerate(zip(blends, parts, strict=True)):
        expected = part * blend * (1 - shares[layer + 1]) if blend < 1 else 0.0
        assert shares[layer] == pytest.approx(float(expected))
    assert leads(blends, [1.0] * len(blends)) == leads(blends)
    assert leads(blends, [0.0] * len(blends)) == [0.0] * len(shares)


def test_half_the_leads_leave_half_of_the_losses():
    blends, updates = [Fraction(1, 16)] * 30, [1.0] * 30
    steps = [1 / (1 - share) for share in leads(blends, [0.5] * 30)[1:]]
    lost = [30 - run(blends, updates, sizes)[-1] for sizes in ([1.0] * 30, steps)]
    assert lost[1] == pytest.approx(lost[0] / 2, rel=0.1)
