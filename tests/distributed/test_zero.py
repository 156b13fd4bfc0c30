"""Two processes of DeepSpeed's ZeRO; its stage 3 has a stand-in in tests/head/test_loss.py and tests/engine/proof."""

import copy
import importlib.util

import pytest
import torch

import revformers as rf
from tests.distributed.comparing import largest_difference, made, micro_batches, of_rank

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]


def trained(engine, batches):
    """The losses of steps, and the trained weights after them by name."""
    from deepspeed.utils import safe_get_full_fp32_param

    losses = []
    for inputs in batches:
        loss = engine(**inputs).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    weights = {
        name: (safe_get_full_fp32_param(parameter) if engine.zero_optimization_stage() else parameter).detach().clone()
        for name, parameter in engine.module.named_parameters()
        if parameter.requires_grad
    }
    return losses, weights


def over_stage(rank, stage, model, head):
    import deepspeed

    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        # Otherwise weights as small as these would never be released.
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
    }
    batches = micro_batches(made(), 3)
    results = []
    for policy in ("store", "rebuild", "checkpoint"):
        network = made(**model)
        rf.set_activations(network, policy)
        alone = copy.deepcopy(network)
        for one in (network, alone):
            rf.set_head_loss(one, rf.HeadLoss(chunk=7) if head else None)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
        engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=config)
        if stage == 3 and head:
            with pytest.raises(ValueError, match=r"ZeRO-3 releases the head of LlamaForCausalLM"):
                engine(**batches[0])
            return
        results.append(trained(engine, of_rank(batches, rank)))
    assert results[0][0] == results[1][0] == results[2][0]
    for name, weight in results[0][1].items():
        assert torch.equal(weight, results[1][1][name])
        assert torch.equal(weight, results[2][1][name])
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.05)
    for inputs in batches:
        optimizer.zero_grad()
        alone(**inputs).loss.backward()
        optimizer.step()
    difference = largest_difference(results[0][1], {name: alone.get_parameter(name) for name in results[0][1]})
    assert difference < 1e-5, f"weights differ from those of one process by {difference}"


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_training_is_that_of_one_process(pair, stage):
    for head in (False, True):
        pair.run(over_stage, stage, {}, head)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        {"lora": True},
        {"family": "gpt2", "dynamics": rf.Hamiltonian()},
        {"dynamics": rf.TwoEvaluationMidpoint("1/4")},
        {"predictor": "previous_mlp"},
        {"family": "mixtral"},
    ],
    ids=str,
)
def test_adapters_and_branches_under_stage_3(pair, model):
    pair.run(over_stage, 3, model, False)
