import pytest
from transformers import AutoConfig

from lab.bench.workload import llama_config
from revformers.planning.setups import rebuild, title_of
from revformers.planning.step import _run
from revformers.planning.timeline import Recorder, between
from revformers.setup import CHECKPOINT, STORE, Workload

LLAMA = llama_config(3, 64, 256, 512)
# Its masks have an element for every pair of tokens.
GEMMA = LLAMA | {"model_type": "gemma2", "head_dim": 32, "sliding_window": 16}
SIZES = (40, 57, 90, 128)


def steps(config, setup, axis):
    workload = Workload(AutoConfig.for_model(**config), head="own")
    shapes = {size: (16 * size, 256) if axis == "batch" else (2, 512 * size) for size in SIZES}
    return {size: _run(workload, setup, 3, *shape) for size, shape in shapes.items()}


@pytest.mark.parametrize("axis", ["batch", "tokens"])
@pytest.mark.parametrize("setup", [STORE, CHECKPOINT, rebuild(0), rebuild(2)], ids=title_of)
@pytest.mark.parametrize("config", [LLAMA, GEMMA], ids=["llama", "gemma2"])
def test_a_step_between_others_is_the_one_that_would_run(config, setup, axis):
    known = steps(config, setup, axis)
    degree = 1 if axis == "batch" else 2
    for size in SIZES[1:-1]:
        others = {other: step for other, step in known.items() if other != size}
        found = between(others, size, degree)
        assert found is not None
        assert found.peak() == known[size].peak()


def test_two_steps_do_not_tell_of_masks():
    known = steps(GEMMA, STORE, "tokens")
    ends = {size: known[size] for size in (SIZES[0], SIZES[-1])}
    assert between(ends, SIZES[1], degree=2) is None
    wrong = between(ends, SIZES[1], degree=1)
    assert wrong is None or wrong.peak().total > known[SIZES[1]].peak().total


def test_nothing_is_said_beyond_what_ran_or_between_steps_of_different_operators():
    known = steps(LLAMA, STORE, "batch")
    assert between(known, SIZES[-1] + 1, degree=1) is None
    assert between(known, SIZES[0] - 1, degree=1) is None
    others = steps(LLAMA, CHECKPOINT, "batch")
    assert between({40: known[40], 90: others[90]}, 57, degree=1) is None
    # The loss has more chunks.
    workload = Workload(AutoConfig.for_model(**LLAMA))
    chunked = {batch: _run(workload, STORE, 3, batch, 64) for batch in (1, 3)}
    assert between(chunked, 2, degree=1) is None


def timeline(*sizes, workspace=0):
    recorder = Recorder()
    for size in sizes:
        recorder.change("working", size)
        recorder.moment()
    recorder.moment(workspace, "head")
    return recorder.timeline()


def test_the_peak_is_the_first_moment_at_which_most_is_alive():
    assert timeline(5, 3, -3, 3).peak().working == 8
    assert timeline().peak().total == 0
    peak = timeline(5, 3, -7, workspace=10).peak()
    assert (peak.working, peak.head) == (1, 10)


def test_sizes_are_polynomials_of_whole_numbers():
    assert between({1: timeline(10), 3: timeline(20)}, 2, degree=1).peak().total == 15
    assert between({1: timeline(10), 3: timeline(21)}, 2, degree=1) is None
    squares = {number: timeline(number**2) for number in (2, 4, 5)}
    assert between(squares, 3, degree=2).peak().total == 9


def test_a_workspace_that_may_be_part_of_the_peak_is_run():
    known = {number: timeline(10 * number, workspace=100) for number in (1, 3)}
    assert between(known, 2, degree=1) is None
    known = {number: timeline(10 * number, -9 * number, workspace=10) for number in (1, 3)}
    assert between(known, 2, degree=1).peak().total == 20
