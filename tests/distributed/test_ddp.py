"""Two processes of DistributedDataParallel."""

import functools

import pytest
from torch.nn.parallel import DistributedDataParallel

import revformers as rf
from revformers.head.teacher import FrozenCopy
from tests.distributed.comparing import (
    compare,
    gradients,
    largest_difference,
    last_only,
    made,
    micro_batches,
    of_rank,
)
from tests.tiny_models import tiny

pytestmark = pytest.mark.thorough

OPTIONS = {
    "plain": {},
    "static_graph": {"static_graph": True},
    "find_unused_parameters": {"find_unused_parameters": True},
    "gradient_as_bucket_view": {"gradient_as_bucket_view": True},
}


def replicated(rank, ddp, keywords, model):
    compare(rank, functools.partial(DistributedDataParallel, **ddp), made(**model), **keywords)


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_are_those_of_one_process(pair, name):
    pair.run(replicated, OPTIONS[name], {"head": True}, {})


def test_gradients_accumulate_without_synchronisation(pair):
    pair.run(replicated, {}, {"number": 3, "find": last_only}, {"dynamics": rf.Hamiltonian()})


def test_dropout_is_drawn_again(pair):
    pair.run(replicated, {}, {"seeded": True}, {"family": "gpt2", "dropout": 0.2})


@pytest.mark.parametrize("model", [{"lora": True}, {"predictor": "previous_mlp"}], ids=str)
def test_adapters_and_layers_that_are_evaluated_twice(pair, model):
    pair.run(replicated, {}, {}, model)


def masked_on_one(rank):
    model = made()
    rf.set_head_loss(model, rf.HeadLoss(1.0, 1.0, teacher=FrozenCopy(tiny("llama")), chunk=7))
    (inputs,) = micro_batches(model, 1)
    inputs["labels"] = inputs["labels"].clone()
    inputs["labels"][1] = -100  # no token of the second process counts, and it takes part all the same
    _, alone = gradients(model, [{name: value[:1] for name, value in inputs.items()}])
    _, found = gradients(DistributedDataParallel(model), of_rank([inputs], rank))
    assert largest_difference(found, {name: gradient / 2 for name, gradient in alone.items()}) < 1e-7


def test_a_process_whose_tokens_are_all_masked_takes_part(pair):
    pair.run(masked_on_one)


def alone(rank):
    compare(rank, lambda model: model, made())


def test_processes_that_do_not_share_gradients_are_noticed(pair):
    with pytest.raises(AssertionError, match="gradients differ from those of one process"):
        pair.run(alone)
