import copy
import math
import weakref

import pytest
import torch

import revformers as rf
from revformers.engine.fixed_point import INT64
from revformers.engine.range_check import RangeCheck
from revformers.engine.range_watch import MOST_WAITING, RangeWatch
from tests.test_reversible import llama


def checked(*values):
    return RangeCheck(INT64, torch.tensor(values))


@pytest.mark.parametrize("others_have_one", [True, False])
def test_a_pass_without_a_backward_pass_is_checked_by_a_later_one(others_have_one):
    """On a GPU the end of a backward pass raises the error, which such a pass does not have."""
    model, batch = llama(), {"input_ids": torch.ones(1, 4, dtype=torch.long)}
    watch = rf.make_reversible(model, rf.Midpoint()).model._reversible_stack.range_watch
    watch.add(checked(float("inf")))
    for _ in range(MOST_WAITING - 1):
        watch.raise_for_abandoned()
        other = checked(1.0)
        watch.add(other)
        if others_have_one:
            other.raise_if_exceeded()
    with pytest.raises(rf.StateRangeError, match="embedding has magnitude inf"):
        model(**batch)
    model(**batch)


def test_a_pass_that_was_looked_at_does_not_wait():
    watch = RangeWatch()
    for _ in range(2 * MOST_WAITING):
        check = checked(float("inf"))
        watch.add(check)
        with pytest.raises(rf.StateRangeError):
            check.raise_if_exceeded()
        watch.raise_for_abandoned()


def test_a_check_that_was_looked_at_in_its_forward_pass_is_not_kept():
    """On a CPU every one is; its magnitudes would take memory for every layer."""
    watch, kept = RangeWatch(), []
    for looks in (True, False):
        check = checked(1.0)
        if looks:
            check.raise_if_exceeded()
        watch.add(check)
        kept.append(weakref.ref(check))
        del check
    assert [reference() is None for reference in kept] == [True, False]


def test_the_largest_magnitude_is_that_of_all_passes():
    watch = RangeWatch()
    assert watch.largest == 0.0
    for value in (1.0, -3.0, 2.0):
        watch.add(checked(value))
    assert watch.largest == 3.0
    watch.largest = 0.0
    watch.add(checked(float("inf")))
    assert math.isinf(watch.largest)


def test_a_block_that_measures_begins_at_zero_and_leaves_nothing_behind():
    watch = RangeWatch()
    watch.add(checked(3.0))

    def measure():
        with watch.set_aside():
            assert watch.largest == 0.0
            watch.add(checked(5.0))
            assert watch.largest == 5.0
            raise KeyError

    with pytest.raises(KeyError):
        measure()
    assert watch.largest == 3.0


def test_a_copy_has_met_no_pass():
    watch = RangeWatch()
    watch.add(checked(3.0))
    assert copy.deepcopy(watch).largest == 0.0
