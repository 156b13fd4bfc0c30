import itertools

import pytest

from lab.bench import step_time as module
from lab.bench.step_time import Quartiles, StepTimes, measure_step_times


class Clock:
    """A clock that stands still between steps."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)

    def step(self, seconds, order=None, name=None):
        def run(number):
            self.now += seconds(number)
            if order is not None:
                order.append(name)

        return run


def test_times_are_those_of_the_steps_and_ratios_those_of_the_rounds(monkeypatch):
    clock = Clock(monkeypatch)
    # The machine becomes slower from round to round: the ratio stays what it is.
    steps = {"one": clock.step(lambda number: 1.0 + number), "two": clock.step(lambda number: 3.0 * (1.0 + number))}
    times = measure_step_times(steps, rounds=4, warm_up_rounds=2, after_step=clock_moves(clock))
    assert times.seconds == {"one": [3, 4, 5, 6], "two": [9, 12, 15, 18]}
    assert times.ratio("two", "one") == Quartiles(3, 3, 3)
    assert times.summary("one").median == 4.5


def clock_moves(clock):
    def after(name, number):
        clock.now += 100

    return after


def test_every_arm_takes_every_place(monkeypatch):
    clock, order, rounds = Clock(monkeypatch), [], []
    steps = {name: clock.step(lambda number: 1.0, order, name) for name in "abc"}
    measure_step_times(steps, rounds=5, warm_up_rounds=1, on_round=rounds.append)
    turns = ["".join(order[start : start + 3]) for start in range(0, 18, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    for place in range(3):
        assert {turn[place] for turn in turns} == {"a", "b", "c"}
    assert {a + b for turn in turns for a, b in itertools.pairwise(turn)} == {
        "ab",
        "ba",
        "bc",
        "cb",
        "ca",
        "ac",
    }
    assert rounds == list(range(6))


def test_quartiles():
    assert Quartiles.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Quartiles(2, 3, 4)
    assert Quartiles.of([7.0]) == Quartiles(7, 7, 7)
    assert StepTimes({"a": [2.0, 9.0], "b": [1.0, 3.0]}).ratio("a", "b").median == 2.5


@pytest.mark.parametrize(("steps", "rounds", "warm_up"), [({}, 1, 0), ({"a": print}, 0, 1), ({"a": print}, 1, -1)])
def test_nothing_to_time_is_an_error(steps, rounds, warm_up):
    with pytest.raises(ValueError, match="at least one arm and one round"):
        measure_step_times(steps, rounds, warm_up)
