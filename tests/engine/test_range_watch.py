import math

import pytest
import torch

import revformers as rf
from revformers.engine.fixed_point import INT64
from revformers.engine.range_check import RangeCheck
from revformers.engine.range_watch import MOST_WAITING, RangeWatch
from tests.test_reversible import llama


def checked(*values):
    return RangeCheck(INT64, torch.tensor(values))


def test_passes_without_a_backward_pass_are_checked_by_later_ones():
    """On a GPU the end of a backward pass raises the error, which such passes do not have."""
    model, batch = llama(), {"input_ids": torch.ones(1, 4, dtype=torch.long)}
    watch = rf.make_reversible(model, rf.Midpoint()).model._reversible_stack.range_watch
    for _ in range(MOST_WAITING - 1):
        watch.add(checked(float("inf")))
        model(**batch)
    watch.add(checked(1.0))
    with pytest.raises(rf.StateRangeError, match="embedding has magnitude inf"):
        model(**batch)


def test_a_pass_that_was_looked_at_does_not_wait():
    watch = RangeWatch()
    for _ in range(2 * MOST_WAITING):
        check = checked(float("inf"))
        watch.add(check)
        check.is_unseen = False  # as its backward pass does
        watch.raise_for_abandoned()


def test_the_largest_magnitude_is_that_of_all_passes():
    watch = RangeWatch()
    assert watch.largest == 0.0
    for value in (1.0, -3.0, 2.0):
        watch.add(checked(value))
    assert watch.largest == 3.0
    watch.largest = 0.0
    watch.add(checked(float("inf")))
    assert math.isinf(watch.largest)
