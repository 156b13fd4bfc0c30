"""Models that FSDP2 shards over two processes."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import revformers as rf
from tests.tiny_models import batch, tiny

SHARES = (1.0, 1.5, 3.0, 8.0, 100.0)


def step(model, activations, inputs):
    """The loss and the whole gradient of every parameter."""
    rf.set_activations(model, activations)
    model(**inputs).loss.backward()  # a budget stores layers from the second pass of a batch shape on
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    return [loss, *(one.full_tensor() if isinstance(one, DTensor) else one for one in gradients)]


def equal(left, right):
    return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


def rank_of_two(rank, store, family, dynamics):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    whole = rf.make_reversible(tiny(family, num_hidden_layers=6), dynamics)
    sharded = copy.deepcopy(whole)
    for layer in next(module for module in sharded.modules() if isinstance(module, nn.ModuleList)):
        fully_shard(layer)
    fully_shard(sharded)
    sequences = [{name: both[one : one + 1] for name, both in batch(whole).items()} for one in range(2)]
    own = sequences[rank]

    stored = step(sharded, "store", own)
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    alone = [step(whole, "store", sequence) for sequence in sequences]
    assert torch.equal(stored[0], alone[rank][0]), "the loss is that of the own sequence"
    means = [(first + second) / 2 for first, second in zip(*(one[1:] for one in alone), strict=True)]
    assert all(torch.allclose(one, mean, atol=1e-7) for one, mean in zip(stored[1:], means, strict=True))

    assert equal(step(sharded, "rebuild", own), stored)
    for recompute in ("rebuild", "checkpoint"):
        smallest = rf.smallest_budget(whole, *own["input_ids"].shape, recompute)
        for share in SHARES:
            budget = rf.Budget(int(share * smallest), recompute)
            assert equal(step(sharded, budget, own), stored), str(budget)
            step(whole, budget, own)
            reports = rf.budget_report(sharded), rf.budget_report(whole)
            assert reports[0] == reports[1], "sharding leaves activations as they are: " + "; ".join(map(str, reports))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "dynamics"), [("llama", rf.BlendedMidpoint("1/4")), ("gpt2", rf.Hamiltonian())], ids=["llama", "gpt2"]
)
def test_every_budget_gives_the_stored_gradients_to_the_bit(tmp_path, family, dynamics):
    torch.multiprocessing.spawn(rank_of_two, (tmp_path / "store", family, dynamics), nprocs=2)
