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
