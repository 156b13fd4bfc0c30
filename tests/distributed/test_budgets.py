"""Budgets of models that FSDP2 shards over two processes."""

import pytest

import revformers as rf
from tests.distributed.comparing import budgets, equal, gradients, made, micro_batches, of_rank, sharded_layers


def under_budgets(rank, family, dynamics):
    sharded, alone = (made(family, dynamics, num_hidden_layers=6) for _ in range(2))
    own = of_rank(micro_batches(alone, 1), rank)
    rf.set_activations(sharded_layers(sharded), "store")
    stored = gradients(sharded, own)
    for budget in budgets(alone, own[0]):
        for model in (sharded, alone):
            rf.set_activations(model, budget)
            gradients(model, own)  # a budget stores layers from the second pass of a batch shape on
        assert equal(gradients(sharded, own), stored), str(budget)
        gradients(alone, own)
        reports = rf.budget_report(sharded), rf.budget_report(alone)
        assert reports[0] == reports[1], "sharding leaves activations as they are: " + "; ".join(map(str, reports))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "dynamics"), [("llama", rf.BlendedMidpoint("1/4")), ("gpt2", rf.Hamiltonian())], ids=["llama", "gpt2"]
)
def test_every_budget_gives_the_stored_gradients_to_the_bit(pair, family, dynamics):
    pair.run(under_budgets, family, dynamics)


def one_of_a_kind(rank, recompute):
    model = made(num_hidden_layers=6)
    (own,) = of_rank(micro_batches(model, 1), rank)
    budget = rf.Budget(rf.smallest_budget(model, *own["input_ids"].shape, recompute) * (100 if rank else 1), recompute)
    rf.set_activations(sharded_layers(model), "store")
    stored = gradients(model, [own])
    rf.set_activations(model, budget)
    for _ in range(2):
        assert equal(gradients(model, [own]), stored)
    return rf.budget_report(model).stored


@pytest.mark.thorough
@pytest.mark.parametrize("recompute", ["rebuild", "checkpoint"])
def test_processes_may_have_other_budgets(pair, recompute):
    assert pair.run(one_of_a_kind, recompute) == [0, 6]
