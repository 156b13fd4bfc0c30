"""Tensor parallelism over two processes, by transformers' plans and by PyTorch's."""

import itertools

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

import revformers as rf
from lab.sharding import tensor_parallel
from revformers.head.chunked_sum import chunked_sum
from tests.distributed.comparing import BLENDED, budgets, compare, equal, gradients, made, micro_batches, whole
from tests.tiny_models import model_class, tiny

pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore")]


def cut(model, head=None):
    """A Llama whose projections and head are cut by PyTorch's plans."""
    tensor_parallel(model, head)
    assert any(isinstance(parameter, DTensor) for parameter in model.parameters())
    return model


def cut_by_hand(rank, keywords):
    compare(rank, cut, made(**keywords), head=True, split=False, number=2)
    compare(rank, cut, made(**keywords), split=False)


@pytest.mark.parametrize("keywords", [{}, {"dynamics": rf.TwoEvaluationMidpoint("1/4")}], ids=["llama", "twice"])
def test_gradients_are_those_of_one_process(pair, keywords):
    pair.run(cut_by_hand, keywords)


def with_sharded_logits(rank):
    with loss_parallel():
        sharded = cut(made(), ColwiseParallel(output_layouts=Shard(-1), use_local_output=False))
        rf.set_head_loss(sharded, rf.HeadLoss(chunk=7))
        alone, batches = made(), micro_batches(made(), 1)
        losses, found = gradients(sharded, batches)
    expected_losses, expected = gradients(alone, batches)
    assert torch.allclose(losses[0], expected_losses[0], atol=1e-6)
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)


def test_the_chunked_loss_of_sharded_logits(pair):
    pair.run(with_sharded_logits)


def with_a_sharded_sequence(rank):
    model = cut(made())
    mesh = init_device_mesh("cpu", (2,))
    parallelize_module(model.model.norm, mesh, SequenceParallel())
    rf.set_head_loss(model, rf.HeadLoss())
    with pytest.raises(ValueError, match="cannot be applied to a few tokens at a time"):
        gradients(model, micro_batches(model, 1))


def test_the_chunked_loss_of_a_part_of_the_sequence_is_refused(pair):
    pair.run(with_a_sharded_sequence)


def of_spread_rows(rank, chunk):
    """The sum of squares of a product, of rows and weights that are spread over the processes in every way."""
    mesh = init_device_mesh("cpu", (2,))
    rows, weight = torch.randn(9, 6), torch.randn(6, 4)
    alone = [one.clone().requires_grad_() for one in (rows, weight)]
    expected = (alone[0] @ alone[1]).square().sum()
    (3 * expected).backward()
    for of_rows, of_weight in itertools.product((Replicate(), Shard(0), Shard(1)), repeat=2):
        first = distribute_tensor(rows, mesh, [of_rows]).requires_grad_()
        second = distribute_tensor(weight, mesh, [of_weight]).requires_grad_()
        total = chunked_sum(lambda some, second=second: (some @ second).square().sum(), first, chunk=chunk)
        (3 * total).backward()
        assert torch.allclose(whole(total), expected), (of_rows, of_weight)
        for one, plain in zip((first, second), alone, strict=True):
            assert torch.allclose(whole(one.grad), plain.grad, atol=1e-5), (of_rows, of_weight)


@pytest.mark.parametrize("chunk", [4, 100])
def test_a_chunked_sum_of_spread_rows_has_the_gradients_of_one_process(pair, chunk):
    pair.run(of_spread_rows, chunk)


def under_budgets(rank):
    sharded, alone = cut(made(num_hidden_layers=6)), made(num_hidden_layers=6)
    batches = micro_batches(alone, 1)
    rf.set_activations(sharded, "store")
    stored = gradients(sharded, batches)
    chosen = set()
    for budget in budgets(alone, batches[0]):
        rf.set_activations(sharded, budget)
        gradients(sharded, batches)  # observes
        assert equal(gradients(sharded, batches), stored)
        report = rf.budget_report(sharded)
        chosen.add((report.stored, report.attention_kept))
    rf.set_activations(sharded, rf.Offload())
    assert equal(gradients(sharded, batches), stored)
    return sorted(chosen)


def test_every_budget_gives_the_stored_gradients_to_the_bit(pair):
    one, other = pair.run(under_budgets)
    assert one == other
    assert (6, 0) in one
    assert any(0 < stored < 6 for stored, _ in one)


def loaded(family, folder):
    """The model in a folder, cut by the plan of its family, as a reversible one."""
    model = model_class(family).from_pretrained(folder, tp_plan="auto").train()
    return rf.make_reversible(model, BLENDED)


def by_plan(rank, family, folder):
    # The processes have loaded their parts before the model changes.
    alone = made(family)
    compare(rank, lambda _: loaded(family, folder / "ordinary"), alone, head=True, split=False)
    sharded = loaded(family, folder / "ordinary")
    assert any(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    ids = micro_batches(alone, 1)[0]["input_ids"][:, :8]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    tokens = [model.eval().generate(ids, **options).tolist() for model in (alone, sharded)]
    assert tokens[0] == tokens[1]
    sharded.save_pretrained(folder / "reversible")


OTHERS = ["qwen2", "qwen3", "phi3", "gpt_neox", "cohere", "olmo2", "mixtral", "qwen3_moe", "gpt_oss"]


@pytest.mark.parametrize("family", ["llama", "gemma2", *(pytest.param(one, marks=pytest.mark.slow) for one in OTHERS)])
def test_the_plans_of_families_train_generate_and_save(pair, family, tmp_path):
    ordinary = tiny(family)
    ordinary.save_pretrained(tmp_path / "ordinary")
    pair.run(by_plan, family, tmp_path)
    again = rf.from_pretrained(tmp_path / "reversible")
    assert rf.describe(again).recurrence == rf.describe(made(family)).recurrence
    weights = again.state_dict()
    assert weights.keys() == ordinary.state_dict().keys()
    assert all(torch.equal(value, weights[name]) for name, value in ordinary.state_dict().items())


def with_tied_embeddings(rank, folder, head):
    alone = rf.make_reversible(model_class("llama").from_pretrained(folder).train(), BLENDED)
    compare(rank, lambda _: loaded("llama", folder), alone, head=head, split=False)
    sharded = loaded("llama", folder)
    assert sharded.lm_head.weight is sharded.model.embed_tokens.weight
    return any(isinstance(parameter, DTensor) for parameter in sharded.parameters())


@pytest.mark.parametrize("head", [True, False], ids=["chunked", "own"])
def test_embeddings_that_are_tied_to_the_head_get_both_gradients(pair, head, tmp_path):
    tiny("llama", tie_word_embeddings=True).save_pretrained(tmp_path)
    assert pair.run(with_tied_embeddings, tmp_path, head) == [True, True]
