import dataclasses
from collections import Counter

import pytest
from transformers import AutoConfig

from lab.bench.workload import llama_config
from revformers.activations import Budget
from revformers.planning import step
from revformers.planning.devices import DEVICES, Machine
from revformers.planning.model_size import size_in
from revformers.planning.plan import RESERVE, _Costs, make_plan
from revformers.planning.setups import Choices, rebuild
from revformers.planning.step import step_memory
from revformers.setup import CHECKPOINT, ORDINARY_SETUPS, STORE, Workload

CONFIG = llama_config(3, 64, 256, 256)
WORKLOAD = Workload(AutoConfig.for_model(**CONFIG), 1, 64, head="own", optimizer="adamw")
DEVICE = DEVICES["h100"]


@pytest.mark.thorough
def test_the_largest_batch_fits_and_one_more_does_not():
    room = 10 * 2**20
    fixed = make_plan(WORKLOAD, Machine(DEVICE, 2**20), Choices(())).size.total
    plan = make_plan(WORKLOAD, Machine(DEVICE, fixed + room), Choices((0,)))
    rows = [row for row in plan.setups if not isinstance(row.setup.activations, Budget)]
    for row, setup in zip(rows, Choices((0,)).setups, strict=True):
        assert row.setup == setup
        assert row.memory.total == fixed + step_memory(WORKLOAD, setup, 1, 64, fused=True).device.total
        needed = [
            step_memory(WORKLOAD, setup, row.largest_batch + more, 64, fused=True).device.total for more in (0, 1)
        ]
        assert needed[0] <= room < needed[1]
        lengths = (row.longest_context, int(1.01 * row.longest_context) + 256)
        needed = [step_memory(WORKLOAD, setup, 1, tokens, fused=True).device.total for tokens in lengths]
        assert needed[0] <= room < needed[1]
    assert plan.recommendation.startswith("Store activations")
    assert plan.setups[plan.chosen].setup == STORE


@pytest.mark.thorough
def test_few_steps_are_run(monkeypatch):
    runs = Counter()
    run = step._step

    def counted(model, batch, tokens, tiles):
        runs[id(model), batch, tokens, tiles] += 1
        return run(model, batch, tokens, tiles)

    monkeypatch.setattr(step, "_step", counted)
    config = AutoConfig.for_model(**CONFIG | {"num_hidden_layers": 6})
    workload = Workload(config, 1, 4096, precision="bfloat16", head="own")
    fixed = make_plan(dataclasses.replace(workload, sequence_length=64), Machine(DEVICE, 2**20), Choices(())).size.total
    runs.clear()
    plan = make_plan(workload, Machine(DEVICE, fixed + 2**30), Choices((0, 2)))
    assert all(row.largest_batch > 10 for row in plan.setups)
    # Of five setups that run, each at two depths: one sequence, two further batches, two further lengths; and of the
    # recommended one two numbers of tiles. transformers' offloading runs what checkpointing does, but fits others.
    assert sum(runs.values()) <= 5 * 2 * 5 + 2 * 4 + 2 * 2 * 4
    assert set(runs.values()) == {1}


@pytest.mark.thorough
def test_times_are_relative_to_storing_and_copies_cost():
    slow_link = dataclasses.replace(DEVICE, link=DEVICE.link / 1000)
    plans = [make_plan(WORKLOAD, Machine(device, 2**30), Choices((0,))) for device in (DEVICE, slow_link)]
    store, checkpoint, offload, overlapped, rebuild, *_ = plans[0].setups
    assert store.time == store.operations == 1
    assert 1 < checkpoint.time < offload.time < plans[1].setups[2].time
    assert overlapped.time < plans[1].setups[3].time
    assert 1 < checkpoint.operations == offload.operations < rebuild.operations
    # The inputs of a layer take a power of two.
    assert 1 <= offload.host_of_largest_batch / (offload.host * offload.largest_batch) < 2


@pytest.mark.thorough
def test_a_budget_spends_what_rebuilding_leaves_at_the_largest_batch_of_checkpointing():
    deep = dataclasses.replace(WORKLOAD, model_config=AutoConfig.for_model(**CONFIG | {"num_hidden_layers": 16}))
    fixed = make_plan(deep, Machine(DEVICE, 2**20), Choices(())).size.total
    room = 30 * 2**20
    *_, checkpoint, _, _, rebuild, budget = make_plan(deep, Machine(DEVICE, fixed + room), Choices((0,))).setups
    assert isinstance(budget.setup.activations, Budget)
    assert budget.largest_batch == checkpoint.largest_batch
    assert budget.longest_context is None, "it is of a batch, and was not sought"
    taken = (budget.memory.total - fixed) * checkpoint.largest_batch
    assert 0.9 * room < taken <= room
    assert 1 < budget.operations < rebuild.operations
    assert 1 < budget.time < rebuild.time
    shallow = make_plan(WORKLOAD, Machine(DEVICE, 2**28), Choices((0,)))
    budgets = [row for row in shallow.setups if isinstance(row.setup.activations, Budget)]
    assert not budgets, "two states take more than 3 checkpoints"


@pytest.mark.thorough
def test_a_model_that_cannot_be_reversed_is_planned_without():
    config = AutoConfig.for_model(**CONFIG, H_cycles=2)
    plan = make_plan(Workload(config, 1, 16, head="own"), Machine(DEVICE, 2**28), Choices((0,)))
    assert [row.setup for row in plan.setups] == list(ORDINARY_SETUPS)
    assert "several times over" in plan.refusal


@pytest.mark.thorough
def test_only_an_adapter_has_gradients():
    pytest.importorskip("peft")
    plan = make_plan(dataclasses.replace(WORKLOAD, training="lora"), Machine(DEVICE, 2**28), Choices(()))
    rank, width, wide = 16, 64, CONFIG["intermediate_size"]
    assert plan.size.trained == 3 * rank * (4 * (width + width) + 3 * (width + wide))
    assert plan.size.gradients == 4 * plan.size.trained


LARGE_MLP = Workload(
    AutoConfig.for_model(**CONFIG | {"intermediate_size": 2048, "num_hidden_layers": 2}), 1, 256, head="own"
)


def total(setup, tile=None):
    tiled = dataclasses.replace(setup, mlp_tile=tile)
    return size_in(LARGE_MLP, None).total + step_memory(LARGE_MLP, tiled, 1, 256, fused=True).device.total


def costs_on(memory, host=None):
    return _Costs(LARGE_MLP, Machine(DEVICE, memory, host), None)


@pytest.mark.thorough
def test_a_tile_is_chosen_where_one_sequence_fits_with_tiles_only(monkeypatch):
    monkeypatch.setattr("revformers.planning.plan.SMALLEST_TILE", 64)
    plain, half, quarter = (total(CHECKPOINT, tile) for tile in (None, 128, 64))
    assert quarter < half < plain
    with_reserve = 1 / (1 - RESERVE)
    for memory, tile in (
        (half * with_reserve + 1, 128),
        (half * with_reserve - 1, 64),
        (plain, None),
        (quarter * with_reserve - 1, None),
    ):
        costs = costs_on(int(memory))
        (row,) = costs.in_one_tile([costs.of(CHECKPOINT)])
        assert row.setup.mlp_tile == tile
        assert bool(row.largest_batch) == (memory >= quarter * with_reserve)
    costs = costs_on(int(half * with_reserve + 1))
    asked_for = dataclasses.replace(CHECKPOINT, mlp_tile=256)
    rows = costs.in_one_tile([costs.of(STORE), costs.of(asked_for), costs.of(CHECKPOINT)])
    assert [row.setup.mlp_tile for row in rows] == [None, 256, 128]


@pytest.mark.thorough
def test_all_rows_have_the_tile_in_which_all_fit_that_can(monkeypatch):
    monkeypatch.setattr("revformers.planning.plan.SMALLEST_TILE", 64)
    setups = [CHECKPOINT, rebuild(0), rebuild(4)]
    sizes = {tile: [total(setup, tile) for setup in setups] for tile in (None, 128, 64)}
    assert max(sizes[64]) < max(sizes[128]) < min(sizes[None])
    assert min(sizes[128]) < max(sizes[128])
    # Some fit in tiles of 128 tokens, and all in tiles of 64.
    memory = int(max(max(sizes[64]), min(sizes[128])) / (1 - RESERVE)) + 1
    assert memory < max(sizes[128]) / (1 - RESERVE)
    costs = costs_on(memory)
    rows = costs.in_one_tile([costs.of(setup) for setup in setups])
    assert [row.setup.mlp_tile for row in rows] == [64] * 3
    assert all(row.largest_batch for row in rows)


@pytest.mark.thorough
def test_few_tiles_make_the_longest_context_longer():
    costs = _Costs(WORKLOAD, Machine(DEVICE, size_in(WORKLOAD, None).total + 2**24), None)
    row = costs.of(CHECKPOINT)
    tile, tokens = costs.longest_with_tiles(row)
    assert tokens > row.longest_context
    assert 4 * tile == tokens
    needed = [
        step_memory(WORKLOAD, dataclasses.replace(CHECKPOINT, mlp_tile=one // 4), 1, one, fused=True).device.total
        for one in (tokens, int(1.01 * tokens) // 256 * 256 + 256)
    ]
    assert needed[0] <= 2**24 < needed[1]


@pytest.mark.thorough
def test_a_host_without_memory_gets_no_tiles():
    plan = make_plan(WORKLOAD, Machine(DEVICE, 2**30, 0), Choices(()))
    offloads = [row for row in plan.setups if row.setup.activations.on_host]
    assert [(row.largest_batch, row.longest_context, row.limited_by_host) for row in offloads] == 2 * [(0, 0, True)]
    assert all(row.setup.mlp_tile is None for row in plan.setups)
