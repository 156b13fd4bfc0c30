"""Comparison of a model on two processes under each activation policy, and with one process."""

import contextlib
import copy
import functools

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import revformers as rf
from lab import sharding
from revformers.models.attach import add_update_predictors
from revformers.models.update_predictor import predictor_form_of
from tests.tiny_models import batch, tiny

BLENDED = rf.BlendedMidpoint("1/4")
SHARES = (1.0, 1.5, 3.0, 8.0, 100.0)
"""Budgets as multiples of the smallest one; the first stores nothing, the last everything."""


def made(family="llama", dynamics=BLENDED, predictor="none", **options):
    """A reversible tiny model; the weights of a predictor are random."""
    model = rf.make_reversible(tiny(family, **options), dynamics)
    if predictor != "none":
        for module in add_update_predictors(model, predictor_form_of(predictor)):
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.05)
    return model


def layers_of(model):
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))


def unwrapped(model):
    return model.module if hasattr(model, "module") else model


def micro_batches(model, number):
    """Batches of two sequences of other tokens each."""
    ids = [(batch(model)["input_ids"] + 7 * one) % 90 + 10 for one in range(number)]
    return [{"input_ids": one, "labels": one} for one in ids]


def of_rank(batches, rank):
    return [{name: value[rank : rank + 1] for name, value in inputs.items()} for inputs in batches]


def whole(tensor):
    return sharding.whole(tensor).detach().clone()


def gradients(model, batches, *, last_only=False):
    """The loss of every batch, and the whole gradients of the sum of the mean losses by name.

    Args:
        model: the model, or a wrapper of DDP around it.
        batches: what it is called with, once each.
        last_only: whether DDP reduces gradients in the last backward pass only.

    """
    model.zero_grad()
    losses = []
    for number, inputs in enumerate(batches):
        if last_only:
            model.require_backward_grad_sync = number == len(batches) - 1  # what `no_sync` sets
        loss = model(**inputs).loss / len(batches)
        loss.backward()
        losses.append(whole(loss))
    found = {name: whole(one.grad) for name, one in unwrapped(model).named_parameters() if one.grad is not None}
    assert any(gradient.count_nonzero() for gradient in found.values())
    return losses, found


def equal(left, right):
    """Whether losses and gradients are equal to the bit."""
    return (
        all(map(torch.equal, left[0], right[0]))
        and left[1].keys() == right[1].keys()
        and all(torch.equal(gradient, right[1][name]) for name, gradient in left[1].items())
    )


def largest_difference(left, right):
    assert left.keys() == right.keys()
    return max((gradient - right[name]).abs().max().item() for name, gradient in left.items())


@contextlib.contextmanager
def evaluations(model):
    """A list that has an entry for every evaluation of the first layer, of its first projection to be exact."""
    found = []
    projection = next(one for one in layers_of(model)[0].modules() if isinstance(one, nn.Linear | Conv1D))
    handle = projection.register_forward_hook(lambda *_: found.append(None))
    yield found
    handle.remove()


def budgets(model, inputs):
    """Budgets of both kinds for a batch."""
    for recompute in ("rebuild", "checkpoint"):
        smallest = rf.smallest_budget(model, *inputs["input_ids"].shape, recompute)
        for share in SHARES:
            yield rf.Budget(int(share * smallest), recompute)


def compare(rank, shard, model, *, head=False, number=1, split=True, find=gradients, seeded=False, atol=1e-6):
    """Assert that rebuilding gives the stored gradients to the bit, and that they are those of one process.

    Layers must have been evaluated again to rebuild them: a policy without effect gives the stored gradients as well.

    Args:
        rank: of this process.
        shard: spreads a model over the processes, and returns what is called.
        model: a reversible model.
        head: whether the loss is computed in chunks.
        number: of batches whose gradients are accumulated.
        split: whether each process takes a sequence of every batch; otherwise each takes both.
        find: `gradients`, or a function like it.
        seeded: whether the model draws random numbers, so that one process computes something else.
        atol: the largest difference from one process that is rounding.

    """
    alone, sharded = copy.deepcopy(model), shard(model)
    for one in (alone, unwrapped(sharded)):
        rf.set_head_loss(one, rf.HeadLoss(chunk=7) if head else None)
    batches = micro_batches(alone, number)
    results, counts = [], []
    for policy in ("store", "rebuild"):
        rf.set_activations(unwrapped(sharded), policy)
        torch.manual_seed(rank)
        with evaluations(sharded) as counted:
            results.append(find(sharded, of_rank(batches, rank) if split else batches))
        counts.append(len(counted))
    assert counts[1] == 2 * counts[0] > 0, f"a layer was evaluated {counts[0]} times stored, and {counts[1]} rebuilt"
    assert equal(*results), "rebuilt gradients are not the stored ones"
    if not seeded:
        difference = largest_difference(results[0][1], gradients(alone, batches)[1])
        assert difference < atol, f"gradients differ from those of one process by {difference}"


def sharded_layers(model, **options):
    """FSDP2 over every layer and the rest."""
    from torch.distributed.fsdp import fully_shard

    for layer in layers_of(model):
        fully_shard(layer, **options)
    return fully_shard(model, **options)


last_only = functools.partial(gradients, last_only=True)
