import dataclasses
from collections import Counter

import pytest
from transformers import AutoConfig

from lab.bench.workload import llama_config
from revformers.activations import Budget
from revformers.planning import step
from revformers.planning.devices import DEVICES
from revformers.planning.plan import make_plan
from revformers.planning.setups import setups
from revformers.planning.step import step_memory
from revformers.setup import ORDINARY_SETUPS, Workload

CONFIG = llama_config(3, 64, 256, 256)
WORKLOAD = Workload(AutoConfig.for_model(**CONFIG), 1, 64, head="own", optimizer="adamw")
DEVICE = DEVICES["h100"]


@pytest.mark.thorough
def test_the_largest_batch_fits_and_one_more_does_not():
    room = 10 * 2**20
    fixed = make_plan(WORKLOAD, 2**20, DEVICE, bits=()).size.total
    plan = make_plan(WORKLOAD, fixed + room, DEVICE, bits=(0,))
    rows = [row for row in plan.setups if not isinstance(row.setup.activations, Budget)]
    for row, setup in zip(rows, setups((0,)), strict=True):
        assert row.setup == setup
        assert row.memory.total == fixed + step_memory(WORKLOAD, setup, 1, 64).device.total
        needed = [step_memory(WORKLOAD, setup, row.largest_batch + more, 64).device.total for more in (0, 1)]
        assert needed[0] <= room < needed[1]
        lengths = (row.longest_context, int(1.01 * row.longest_context) + 256)
        needed = [step_memory(WORKLOAD, setup, 1, tokens).device.total for tokens in lengths]
        assert needed[0] <= room < needed[1]
    assert plan.recommendation.startswith("Store activations")


@pytest.mark.thorough
def test_few_steps_are_run(monkeypatch):
    runs = Counter()
    run = step._step

    def counted(model, batch, tokens, tiles):
        runs[id(model), batch, tokens, tiles] += 1
        return run(model, batch, tokens, tiles)

    monkeypatch.setattr(step, "_step", counted)
    workload = Workload(AutoConfig.for_model(**CONFIG | {"num_hidden_layers": 6}), 1, 16384, precision="bfloat16")
    fixed = make_plan(dataclasses.replace(workload, sequence_length=64), 2**20, DEVICE, bits=()).size.total
    runs.clear()
    plan = make_plan(workload, fixed + 2**32, DEVICE, bits=(0, 2))
    assert all(row.largest_batch > 10 for row in plan.setups)
    # Of four setups that run, each at two depths: one sequence, two further batches, two further lengths. Offloading
    # runs what checkpointing does, but fits other ones.
    assert sum(runs.values()) <= 4 * 2 * 5 + 2 * 4
    assert set(runs.values()) == {1}


@pytest.mark.thorough
def test_times_are_relative_to_storing_and_copies_cost():
    slow_link = dataclasses.replace(DEVICE, link=DEVICE.link / 10)
    plans = [make_plan(WORKLOAD, 2**30, device, bits=(0,)) for device in (DEVICE, slow_link)]
    store, checkpoint, offload, rebuild, *_ = plans[0].setups
    assert store.time == store.operations == 1
    assert 1 < checkpoint.time < offload.time < plans[1].setups[2].time
    assert 1 < checkpoint.operations == offload.operations < rebuild.operations
    # Inputs take powers of two, of which a large one has less to spare.
    assert 0 < offload.host_of_largest_batch <= offload.host * offload.largest_batch


@pytest.mark.thorough
def test_a_budget_spends_what_rebuilding_leaves_at_the_largest_batch_of_checkpointing():
    deep = dataclasses.replace(WORKLOAD, model_config=AutoConfig.for_model(**CONFIG | {"num_hidden_layers": 16}))
    fixed = make_plan(deep, 2**20, DEVICE, bits=()).size.total
    room = 30 * 2**20
    *_, checkpoint, _, rebuild, budget = make_plan(deep, fixed + room, DEVICE, bits=(0,)).setups
    assert isinstance(budget.setup.activations, Budget)
    assert budget.largest_batch == checkpoint.largest_batch
    taken = (budget.memory.total - fixed) * checkpoint.largest_batch
    assert 0.9 * room < taken <= room
    assert 1 < budget.operations < rebuild.operations
    assert 1 < budget.time < rebuild.time
    shallow = make_plan(WORKLOAD, 2**28, DEVICE, bits=(0,))
    budgets = [row for row in shallow.setups if isinstance(row.setup.activations, Budget)]
    assert not budgets, "two states take more than 3 checkpoints"


@pytest.mark.thorough
def test_a_model_that_cannot_be_reversed_is_planned_without():
    config = AutoConfig.for_model(**CONFIG, H_cycles=2)
    plan = make_plan(Workload(config, 1, 16, head="own"), 2**28, DEVICE, bits=(0,))
    assert [row.setup for row in plan.setups] == list(ORDINARY_SETUPS)
    assert "several times over" in plan.refusal


@pytest.mark.thorough
def test_only_an_adapter_has_gradients():
    pytest.importorskip("peft")
    plan = make_plan(dataclasses.replace(WORKLOAD, training="lora"), 2**28, DEVICE, bits=())
    rank, width, wide = 16, 64, CONFIG["intermediate_size"]
    assert plan.size.trained == 3 * rank * (4 * (width + width) + 3 * (width + wide))
    assert plan.size.gradients == 4 * plan.size.trained
