import pytest
import torch

from revformers.engine.fixed_point import MAXIMUM_MAGNITUDE
from revformers.engine.range_check import RangeCheck
from revformers.errors import StateRangeError


@pytest.mark.parametrize(
    ("value", "weight", "magnitude"),
    [
        (float("nan"), 1.0, "nan"),
        (float("-inf"), 1.0, "inf"),
        (-2 * MAXIMUM_MAGNITUDE, 1.0, "8.38861e\\+06"),
        (MAXIMUM_MAGNITUDE, 2.0, "8.38861e\\+06"),
    ],
)
def test_the_first_value_out_of_range_is_named(value, weight, magnitude):
    check = RangeCheck()
    check.observe("state after layer 0", torch.ones(2, 3))
    check.observe("update of layer 1", torch.tensor([1.0, value, 2.0]), weight)
    check.observe("state after layer 1", torch.tensor([float("nan")]))
    with pytest.raises(StateRangeError, match=f"update of layer 1 has magnitude {magnitude}"):
        check.raise_if_exceeded()


def test_the_limit_itself_is_in_range():
    check = RangeCheck()
    check.observe("state", torch.tensor([-MAXIMUM_MAGNITUDE, MAXIMUM_MAGNITUDE]))
    check.raise_if_exceeded()


def test_of_no_numbers_there_is_no_largest():
    check = RangeCheck()
    check.raise_if_exceeded()
    check.observe("state", torch.empty(0, 3))
    check.raise_if_exceeded()
    assert check.largest == 0
