"""Two processes of FSDP, version 1 and 2."""

import functools

import pytest
import torch
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    ShardingStrategy,
    fully_shard,
)
from torch.distributed.tensor import DTensor

import revformers as rf
from tests.distributed.comparing import compare, gradients, layers_of, made, micro_batches, of_rank, sharded_layers
from tests.tiny_models import FAMILIES

pytestmark = pytest.mark.thorough

TWICE = {
    "previous_mlp": {"predictor": "previous_mlp"},
    "previous_update": {"predictor": "previous_update"},
    "two evaluations": {"dynamics": rf.TwoEvaluationMidpoint("1/4")},
}
"""Models that evaluate the layer before from inside the next one."""


def root(model):
    return fully_shard(model)


def with_own_head(model):
    """The head in a group of its own, gathered for every chunk."""
    fully_shard(model.lm_head)
    return sharded_layers(model)


def on_demand(model):
    """Gradients stay unreduced until the last batch."""
    model = sharded_layers(model)

    def begin(module, arguments, keywords):
        model.calls = getattr(model, "calls", 0) + 1
        model.set_requires_gradient_sync(model.calls % 3 == 0)

    model.register_forward_pre_hook(begin, with_kwargs=True)
    return model


WAYS = {
    "layers": sharded_layers,
    "root": root,
    "own head": with_own_head,
    "unsharded after forward": functools.partial(sharded_layers, reshard_after_forward=False),
    "offloaded": functools.partial(sharded_layers, offload_policy=CPUOffloadPolicy(pin_memory=False)),
    "on demand": on_demand,
}


def sharded(rank, way, keywords, model):
    model = made(**model)
    compare(rank, WAYS[way], model, **keywords)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())


@pytest.mark.parametrize("head", [True, False], ids=["chunked", "own loss"])
@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_one_process(pair, way, head):
    pair.run(sharded, way, {"head": head, "number": 3 if way == "on demand" else 1}, {})


@pytest.mark.parametrize(
    "model",
    [
        {"lora": True},
        {"predictor": "update"},
        {"family": "gpt2", "dynamics": rf.Hamiltonian()},
        {"family": "mixtral"},
    ],
    ids=str,
)
def test_adapters_predictors_and_families(pair, model):
    pair.run(sharded, "layers", {"number": 2}, model)


def test_dropout_is_drawn_again(pair):
    pair.run(sharded, "layers", {"seeded": True}, {"family": "gpt2", "dropout": 0.2})


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_with_every_policy(pair, family):
    for dynamics in (rf.BlendedMidpoint("1/4"), rf.Hamiltonian()):
        for way in ("layers", "root", "unsharded after forward"):
            pair.run(sharded, way, {"head": way == "layers"}, {"family": family, "dynamics": dynamics})


@pytest.mark.parametrize("name", TWICE)
def test_layers_that_are_evaluated_twice_stay_unsharded(pair, name):
    pair.run(sharded, "unsharded after forward", {"number": 2}, TWICE[name])


def refused(rank, shard, model, message):
    with pytest.raises(ValueError, match=message):
        gradients(shard(made(**model)), of_rank(micro_batches(made(), 1), rank))


@pytest.mark.parametrize("name", TWICE)
def test_layers_that_are_evaluated_twice_and_were_sharded_again_are_refused(pair, name):
    message = r"Layer 1 evaluates layer 0 as well.*reshard_after_forward=False"
    pair.run(refused, sharded_layers, TWICE[name], message)
    if name == "two evaluations":
        pair.run(refused, first_version, TWICE[name], message)


def cast_in_between(model):
    return sharded_layers(model, mp_policy=MixedPrecisionPolicy(torch.bfloat16, output_dtype=torch.float32))


def cast_at_the_end(model):
    for layer in layers_of(model):
        fully_shard(layer, mp_policy=MixedPrecisionPolicy(torch.bfloat16))
    return fully_shard(model, mp_policy=MixedPrecisionPolicy(torch.bfloat16, output_dtype=torch.float32))


def half(rank):
    compare(rank, cast_at_the_end, made(), atol=1e-2)


def test_the_model_may_have_an_output_dtype_and_its_layers_may_not(pair):
    pair.run(half)
    pair.run(refused, cast_in_between, {}, "If FSDP2 casts it, leave output_dtype out of the layers'")


def first_version(model, strategy=ShardingStrategy.FULL_SHARD, own_head=False):
    wrapped = functools.partial(
        FullyShardedDataParallel,
        use_orig_params=True,
        device_id=torch.device("cpu"),
        sharding_strategy=strategy,
    )
    layers = layers_of(model)
    for number, layer in enumerate(layers):
        layers[number] = wrapped(layer)
    if own_head:
        model.lm_head = wrapped(model.lm_head)
    return wrapped(model)


def first_gradients(model, batches):
    """As `gradients`, for FSDP1."""
    model.zero_grad()
    losses = [model(**inputs).loss / len(batches) for inputs in batches]
    for loss in losses:
        loss.backward()
    with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
        named = unwrapped_names(model)
        return [loss.detach() for loss in losses], {name: one.grad.clone() for name, one in named.items()}


def unwrapped_names(model):
    return {name.replace("_fsdp_wrapped_module.", ""): one for name, one in model.named_parameters()}


def first(rank, keywords, head):
    compare(rank, functools.partial(first_version, **keywords), made(), head=head, find=first_gradients)


@pytest.mark.parametrize(
    "keywords", [{}, {"own_head": True}, {"strategy": ShardingStrategy.SHARD_GRAD_OP}], ids=["full", "own head", "grad"]
)
def test_the_first_version_gives_the_same_gradients(pair, keywords):
    for head in (True, False):
        pair.run(first, keywords, head)
