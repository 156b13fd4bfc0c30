import pytest

import revformers as rf
from revformers.dynamics.text import described


@pytest.mark.parametrize(
    ("dynamics", "text"),
    [
        (rf.Residual(), "residual"),
        (rf.Midpoint(), "midpoint"),
        (rf.Midpoint(step_size=1, readout="mean"), "midpoint:step_size=1,readout=mean"),
        (rf.BlendedMidpoint("1/2"), "blended_midpoint:blend=1/2"),
        (rf.BlendedMidpoint(["1/2", "1/4"], start="zero"), "blended_midpoint:blend=[1/2,1/4],start=zero"),
        (rf.BlendedMidpoint.random(3), "blended_midpoint:random_seed=3"),
    ],
)
def test_only_what_differs_from_the_defaults_is_written(dynamics, text):
    # the order of the options is that of the fields
    name, _, options = described(dynamics).partition(":")
    expected, _, others = text.partition(":")
    assert name == expected
    assert sorted(options.split(",")) == sorted(others.split(","))
