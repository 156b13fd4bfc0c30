import json
from typing import ClassVar

import pytest
import torch

from lab.bench import environment, study_file
from lab.bench import study as module
from lab.bench.arm_names import arm_name, budget_of
from lab.bench.memory import PeakMemory, TurnTimes
from lab.bench.recipe import BenchRecipe
from lab.bench.study import Study, settings
from lab.bench.study_axis import AXES
from lab.bench.study_file import StudyFile
from revformers.errors import UserError
from revformers.training.recipe import NetworkSection, RecurrenceSection

CONFIG = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
CONFIG |= {"num_key_value_heads": 2, "vocab_size": 16, "max_position_embeddings": 4096}
ARMS = ("plain_store", "plain_checkpoint", "rebuild", "budget")
INPUT = 32 * 8 * 4
"""Bytes of one layer's input, of one sequence of 32 tokens."""


class Machine:
    """Stands in for `MeasuringProcess`: takes what is reckoned below, in bytes and seconds, at once."""

    log: ClassVar = []
    interrupt_after: ClassVar = None

    def __init__(self, threads=None, *, returns_memory=True):
        self.returns_memory = returns_memory

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def _note(self, *entry):
        if Machine.interrupt_after == len(Machine.log):
            raise KeyboardInterrupt
        Machine.log.append(entry)

    def device_memory(self, device):
        return 500_000, 10**6

    def peak(self, workload, arm, *, memory=None, resident=False):
        assert self.returns_memory, "resident memory would mean nothing"
        name, budget = arm_name(arm), budget_of(arm)
        self._note(name, workload.layers, workload.batch_size, workload.sequence_length)
        one, layers = workload.layer_input_bytes, workload.layers
        peak = {"plain_store": 10 * layers * one, "plain_checkpoint": (layers + 5) * one, "rebuild": 9 * one}
        peak["checkpoint"] = peak["plain_checkpoint"]
        peak["plain_selective"] = (2 * layers + 5) * one
        if budget:
            assert budget >= min(4, layers) * one  # the states, or the inputs of all layers
            # A layer is stored as a whole.
            stored = max(0, budget - 4 * one) // (10 * one)
            peak[name] = min(10 * layers * one, 9 * one + stored * 10 * one)
        if peak[name] > 10**6:
            raise MemoryError("more than there is")
        return PeakMemory(peak[name], 1000 * layers, 77 if resident else None)

    def times(self, tasks, rounds, warm_up_rounds, *, memory=None):
        assert not self.returns_memory, "every tensor would be made of new pages"
        self._note("times", *tasks)
        speed = {"plain_store": 1.0, "plain_checkpoint": 1.25, "rebuild": 1.5, "budget": 1.125, "checkpoint": 1.25}
        speed["plain_selective"] = 1.2
        seconds = {
            name: [speed[arm_name(arm)] * workload.batch_size] * rounds for name, (workload, arm) in tasks.items()
        }
        return TurnTimes(seconds, {name: [2.5] * (rounds + warm_up_rounds) for name in tasks}, [])


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    monkeypatch.setattr(module, "MeasuringProcess", Machine)
    monkeypatch.setattr(Machine, "log", [])
    monkeypatch.setattr(Machine, "interrupt_after", None)
    return Machine


def recipe(config={}, **changes):  # noqa: B006 - read only
    values = {"arms": ARMS, "batch_size": 1, "sequence_length": 32, "rounds": 3, "tolerance": 0.0}
    return BenchRecipe(model=NetworkSection(config=CONFIG | config), **(values | changes))


def study(tmp_path, axis, bench_recipe, **options):
    file = StudyFile(tmp_path / "result.json", settings(AXES[axis], bench_recipe), ["bench", axis], **options)
    return Study(AXES[axis], bench_recipe, file)


def run(tmp_path, axis, bench_recipe, **options):
    result = study(tmp_path, axis, bench_recipe, **options).run()
    assert json.loads((tmp_path / "result.json").read_text()).items() >= json.loads(json.dumps(result)).items()
    return result


def points(result, memory=None):
    return {(row["value"], row["arm"]): row for row in result["points"] if row["memory"] == memory}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_arms_share_a_process_where_the_allocator_of_a_gpu_counts(device, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(Study, "_check", lambda self: None)
    arms_of, alive = {}, set()

    class Counted(Machine):
        def __enter__(self):
            alive.add(self)
            assert len(alive) == 1, "another process would take a part of the memory"
            return self

        def __exit__(self, *_):
            alive.remove(self)

        def peak(self, workload, arm, **options):
            assert self in alive
            arms_of.setdefault(self, set()).add(arm_name(arm))
            return super().peak(workload, arm, **options)

    monkeypatch.setattr(module, "MeasuringProcess", Counted)
    run(tmp_path, "depth", recipe(depths=(4, 16), memory=("0.1MB",), device=device))
    together = [arms for arms in arms_of.values() if len(arms) == len(ARMS)]
    assert len(together) == (4 if device == "cuda" else 0)
    if device == "cpu":
        # A budget is compared with the peak of checkpointing, which has been measured by then.
        assert all(len(arms) == 1 for arms in arms_of.values())


@pytest.mark.thorough
def test_depth_has_peaks_times_and_the_largest_batch_of_every_arm(tmp_path):
    result = run(tmp_path, "depth", recipe(depths=(4, 16), memory=("0.1MB",)))
    assert result["finished"]
    at = points(result)
    assert {key: row["peak"] for key, row in at.items() if key[1] != "budget"} == {
        (4, "plain_store"): 40 * INPUT, (4, "plain_checkpoint"): 9 * INPUT, (4, "rebuild"): 9 * INPUT,
        (16, "plain_store"): 160 * INPUT, (16, "plain_checkpoint"): 21 * INPUT, (16, "rebuild"): 9 * INPUT,
    }  # fmt: skip
    assert at[16, "rebuild"]["ratios"]["plain_checkpoint"] == {"lower": 1.2, "median": 1.2, "upper": 1.2}
    assert at[16, "rebuild"]["samples_per_second"] == 1 / 1.5
    # The budget of 16 layers has room for one of them within what checkpointing takes; that of 4 for none.
    assert (at[4, "budget"]["peak"], at[16, "budget"]["peak"]) == (9 * INPUT, 19 * INPUT)
    room = {4: 100_000 - 4000, 16: 100_000 - 16000}
    largest = points(result, "0.1MB")
    for layers, name, one in [
        (4, "plain_store", 40),
        (4, "rebuild", 9),
        (16, "plain_checkpoint", 21),
        (16, "rebuild", 9),
    ]:
        assert largest[layers, name]["batch_size"] == room[layers] // (one * INPUT)
    assert largest[16, "plain_store"] == {"value": 16, "memory": "0.1MB", "arm": "plain_store", "fits": False}
    # At the batch that checkpointing reaches, a budget of all that is left of the memory.
    assert largest[4, "budget"]["batch_size"] == largest[4, "plain_checkpoint"]["batch_size"]
    assert largest[4, "budget"]["peak"] <= room[4]
    # Batches differ, so that their steps have no ratio.
    assert set(largest[4, "rebuild"]["ratios"]) == {
        name for name in ("plain_store", "plain_checkpoint")
        if largest[4, name]["batch_size"] == largest[4, "rebuild"]["batch_size"]
    }  # fmt: skip


def test_a_budget_that_cannot_equal_checkpointing_has_no_largest_batch(tmp_path):
    """What a budget does not cover may take more than checkpointing altogether: that is not a largest batch of 0."""
    result = run(tmp_path, "depth", recipe(depths=(2,), memory=("0.1MB",)))
    assert points(result, "0.1MB")[2, "plain_checkpoint"]["batch_size"] > 0
    assert points(result, "0.1MB")[2, "budget"] == {"value": 2, "memory": "0.1MB", "arm": "budget", "fits": None}


@pytest.mark.thorough
def test_batch_and_length_search_once(tmp_path):
    result = run(tmp_path, "batch", recipe(batch_sizes=(1, 2), memory=("0.05MB", "0.1MB")))
    assert points(result)[2, "rebuild"]["peak"] == 18 * INPUT
    for text, size in (("0.05MB", 50_000), ("0.1MB", 100_000)):
        assert points(result, text)[None, "rebuild"]["batch_size"] == (size - 4000) // (9 * INPUT)
    result = run(
        tmp_path, "length", recipe(sequence_lengths=(32,), memory=("0.1MB", "free"), length_unit=16), overwrite=True
    )
    assert points(result, "0.1MB")[None, "rebuild"]["sequence_length"] == (100_000 - 4000) // (9 * INPUT // 2) * 16
    longest = points(result, "free")[None, "rebuild"]["sequence_length"]
    assert longest == (500_000 - 4000) // (9 * INPUT // 2) * 16 < 4096


def test_a_sequence_is_no_longer_than_the_model_reads(tmp_path):
    short = recipe({"max_position_embeddings": 64}, memory=("free",), length_unit=16, arms=("rebuild",))
    assert points(run(tmp_path, "length", short), "free")[None, "rebuild"]["sequence_length"] == 64


def test_a_model_that_reads_less_than_the_unit_of_the_search_is_refused(tmp_path):
    short = recipe({"max_position_embeddings": 64}, memory=("free",), length_unit=128, arms=("rebuild",))
    with pytest.raises(UserError, match="reads 64 tokens at most, fewer than the length_unit of 128"):
        run(tmp_path, "length", short)
    assert Machine.log == []
    assert run(tmp_path, "batch", short)["finished"]


def test_what_a_budget_is_to_equal_is_measured_first_and_in_full(tmp_path):
    at = points(run(tmp_path, "depth", recipe(depths=(16,), arms=("budget", "rebuild", "plain_checkpoint"))))
    assert list(at) == [(16, "budget"), (16, "rebuild"), (16, "plain_checkpoint")]
    assert {row["resident_peak"] for row in at.values() if row["arm"] != "budget"} == {77}


def test_a_budget_equals_the_peak_of_the_rival_that_it_names(tmp_path):
    arms, budgets = (*ARMS, "plain_selective"), ("checkpoint", "selective")
    at = points(run(tmp_path, "budget", recipe({"num_hidden_layers": 16}, arms=arms, budgets=budgets)))
    assert at["checkpoint", "budget"]["peak"] == 19 * INPUT <= at["checkpoint", "plain_checkpoint"]["peak"]
    assert at["selective", "budget"]["peak"] == 29 * INPUT <= at["selective", "plain_selective"]["peak"]
    assert at["selective", "budget"]["ratios"]["plain_selective"]["median"] == 1.125 / 1.2


def test_budget_has_sizes_and_what_equals_checkpointing(tmp_path):
    arms, budgets = (*ARMS, "budget:0.03MB"), ("checkpoint", "0.015MB", "1MB")
    at = points(run(tmp_path, "budget", recipe({"num_hidden_layers": 16}, arms=arms, budgets=budgets)))
    assert at["checkpoint", "budget"]["peak"] == 19 * INPUT <= at["checkpoint", "plain_checkpoint"]["peak"]
    assert at["0.015MB", "budget"]["budget"] == 15_000
    assert at["0.015MB", "budget"]["peak"] == 19 * INPUT
    assert at["1MB", "budget"]["peak"] == at["1MB", "plain_store"]["peak"]
    assert {row["budget"] for (_, name), row in at.items() if name == "budget:0.03MB"} == {30_000}


def test_what_runs_out_of_memory_is_a_result(tmp_path):
    result = run(tmp_path, "batch", recipe(batch_sizes=(64,)))
    at = points(result)
    assert at[64, "plain_store"] == {"value": 64, "memory": None, "arm": "plain_store", "fits": False}
    assert at[64, "rebuild"]["fits"]
    assert Machine.log[-1] == ("times", "plain_checkpoint", "rebuild", "budget")
    (row,) = (row for row in result["peaks"] if row["arm"] == "plain_store")
    assert row["out_of_memory"] == "more than there is"
    # Where checkpointing itself does not fit, there is no budget to equal it.
    at = points(run(tmp_path, "batch", recipe(batch_sizes=(128,)), overwrite=True))
    assert at[128, "budget"]["fits"] is None


@pytest.mark.thorough
@pytest.mark.parametrize("axis", ["depth", "length"])
def test_an_interrupted_study_goes_on_where_it_was(axis, tmp_path):
    bench_recipe = recipe(depths=(4, 8), sequence_lengths=(32, 64), memory=("0.1MB",), length_unit=16)
    whole = run(tmp_path / "whole", axis, bench_recipe)
    everything = list(Machine.log)
    for stop in range(1, len(everything), 5):
        folder = tmp_path / f"stopped {stop}"
        Machine.log.clear()
        Machine.interrupt_after = stop
        with pytest.raises(KeyboardInterrupt):
            run(folder, axis, bench_recipe)
        assert not json.loads((folder / "result.json").read_text())["finished"]
        assert len(Machine.log) == stop
        Machine.interrupt_after = None
        assert run(folder, axis, bench_recipe) == whole
        assert Machine.log == everything  # nothing is measured twice, and nothing is left out


@pytest.mark.thorough
def test_a_finished_study_measures_nothing(tmp_path, monkeypatch):
    first = run(tmp_path, "batch", recipe(batch_sizes=(1, 2), memory=("free",)))
    Machine.log.clear()
    # What is free now does not matter to a study that has begun.
    monkeypatch.setattr(Machine, "device_memory", None)
    assert run(tmp_path, "batch", recipe(batch_sizes=(1, 2), memory=("free",))) == first
    assert Machine.log == []


def test_a_finished_study_keeps_the_day_and_the_command_of_its_measurement(tmp_path):
    bench_recipe, path = recipe(batch_sizes=(1,)), tmp_path / "result.json"
    run(tmp_path, "batch", bench_recipe)
    written = json.loads(path.read_text())
    path.write_text(json.dumps(written | {"environment": written["environment"] | {"date": "2000-01-01"}}))
    before = path.read_text()
    file = StudyFile(path, settings(AXES["batch"], bench_recipe), ["bench", "batch", "--plot", "plot.svg"])
    assert Study(AXES["batch"], bench_recipe, file).run()["finished"]
    assert path.read_text() == before


def test_code_that_changes_while_a_study_runs_ends_it(tmp_path, monkeypatch):
    """The processes that measure are fresh, so that they run the code as it is then."""
    commits, bench_recipe, path = ["one"], recipe(batch_sizes=(1, 2)), tmp_path / "result.json"
    for where in (environment, study_file):
        monkeypatch.setattr(where, "describe_environment", lambda: {"git_commit": commits[-1]})
    file = StudyFile(path, settings(AXES["batch"], bench_recipe), ["bench", "batch"])
    with pytest.raises(UserError, match="whose git commit is 'one', not 'two'"):
        Study(AXES["batch"], bench_recipe, file, lambda line: commits.append("two")).run()
    written = json.loads(path.read_text())
    assert written["environment"]["git_commit"] == "one"
    assert len(written["peaks"]) == 1
    commits.append("one")
    assert run(tmp_path, "batch", bench_recipe)["finished"]


def test_other_settings_another_commit_and_no_study_are_refused(tmp_path):
    run(tmp_path, "batch", recipe(batch_sizes=(1,)))
    for axis, changes, message in [
        ("batch", {"rounds": 4}, r"whose recipe.rounds is 3, not 4.*--overwrite"),
        ("batch", {"arms": ("rebuild",)}, "whose recipe.arms is"),
        ("depth", {"depths": (2,)}, "whose study is 'batch', not 'depth'"),
    ]:
        with pytest.raises(UserError, match=message):
            study(tmp_path, axis, recipe(**({"batch_sizes": (1,)} | changes)))
    path = tmp_path / "result.json"
    written = json.loads(path.read_text())
    for name, value in [("git_commit", "0123456789ab"), ("processor", "another"), ("torch", "2.0")]:
        other = written | {"environment": written["environment"] | {name: value}}
        path.write_text(json.dumps(other))
        with pytest.raises(UserError, match=f"whose {name.replace('_', ' ')} is '{value}'"):
            study(tmp_path, "batch", recipe(batch_sizes=(1,)))
    other = written | {"environment": written["environment"] | {"date": "2000-01-01"}}
    path.write_text(json.dumps(other))
    study(tmp_path, "batch", recipe(batch_sizes=(1,)))
    for text in ("{", "[]", "{}", json.dumps({"peaks": []})):
        path.write_text(text)
        with pytest.raises(UserError, match="holds no study that can continue"):
            study(tmp_path, "batch", recipe(batch_sizes=(1,)))
    run(tmp_path, "batch", recipe(batch_sizes=(2,)), overwrite=True)


@pytest.mark.parametrize(
    ("axis", "changes", "message"),
    [
        ("depth", {}, "bench depth needs values in depths; the recipe has none"),
        ("batch", {}, "needs values in batch_sizes, or memory to search within"),
        ("budget", {"budgets": ("1MB",), "arms": ("rebuild",)}, "needs the arm budget or budget_checkpoint"),
        ("budget", {"budgets": ("0.001MB",)}, "below the .* that budget needs at least"),
        ("batch", {"memory": ("2GiB",)}, "memory 2GiB is more than"),
    ],
)
def test_a_study_that_cannot_be_run_is_refused(axis, changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        run(tmp_path, axis, recipe(**changes))
    assert Machine.log == []


def test_dynamics_that_do_not_fit_every_depth_are_refused(tmp_path):
    two = RecurrenceSection("blended_midpoint", {"blend": ["1/2", "1/4"]})
    with pytest.raises(UserError, match=r"The arm rebuild cannot be measured: .*2 blends"):
        run(tmp_path, "depth", recipe(depths=(2, 4), dynamics=two, arms=("rebuild",)))
