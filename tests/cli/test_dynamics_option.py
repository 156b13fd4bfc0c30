import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import revformers as rf
from revformers.cli.dynamics_option import parse_dynamics
from revformers.dynamics.text import described
from revformers.errors import UserError

steps = st.floats(1e-12, 1e12)
blends = st.sampled_from(["1/2", "-3/4", "1/256", "5/4"])
common = {"start": st.sampled_from(["repeat", "zero"]), "readout": st.sampled_from(["last", "mean"])}
dynamics = st.one_of(
    st.builds(rf.Midpoint, steps, **common),
    st.builds(rf.Leapfrog, steps, **common),
    st.builds(rf.BlendedMidpoint, blends | st.lists(blends, min_size=1, max_size=3), steps, **common),
    st.builds(rf.BlendedMidpoint.random, st.integers(0, 9), **common),
    st.builds(rf.Hamiltonian, **common),
)


@given(dynamics)
@settings(deadline=None, max_examples=100)
def test_what_is_described_is_read_back(one):
    assert parse_dynamics(described(one)) == one


def test_options_are_written_as_in_recipes():
    assert parse_dynamics("blended_midpoint:blend=1/4,step_size=5e-1") == rf.BlendedMidpoint("1/4", 0.5)
    assert parse_dynamics("blended_midpoint:blend=[1/4, 1/2],readout=mean") == rf.BlendedMidpoint(
        ["1/4", "1/2"], readout="mean"
    )
    assert parse_dynamics("midpoint:") == rf.Midpoint()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("euler", "no dynamics called 'euler'"),
        ("leapfrog:2", "such as blend=1/4, not '2'"),
        ("leapfrog:blend=1", "no option 'blend'"),
        ("leapfrog:step_size=[1", r"'step_size=\[1' cannot be read"),
        ("midpoint:step_size=[1]", "number as step_size"),
        ("midpoint:name=leapfrog", "no option 'name'"),
        ("midpoint:step_size=1, step_size=2", "step_size is given twice"),
    ],
)
def test_mistakes_are_one_sentence(text, message):
    with pytest.raises(UserError, match=message) as raised:
        parse_dynamics(text)
    assert "\n" not in str(raised.value)
