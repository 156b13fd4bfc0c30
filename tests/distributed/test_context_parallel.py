"""Sequences that are spread over two processes."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

import revformers as rf
from tests.distributed.comparing import compare, gradients, made

pytestmark = pytest.mark.thorough


class Gather(torch.autograd.Function):
    """From the own part of keys or values to those of all processes, (batch, heads, tokens, width)."""

    @staticmethod
    def forward(ctx, own):
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(2)]
        torch.distributed.all_gather(parts, own.contiguous())
        return torch.cat(parts, 2)

    @staticmethod
    def backward(ctx, gradient):
        total = gradient.contiguous()
        torch.distributed.all_reduce(total)
        return total.chunk(2, 2)[torch.distributed.get_rank()]


def gathering_attention(module, query, key, value, attention_mask, scaling=None, **_):
    """Attention of the own part of a sequence to the keys and values of all parts, exchanged in every layer."""
    rank, tokens = torch.distributed.get_rank(), query.shape[2]
    groups = module.num_key_value_groups
    key, value = (Gather.apply(part).repeat_interleave(groups, 1) for part in (key, value))
    mask = torch.ones(tokens, key.shape[2], dtype=torch.bool).tril(rank * tokens)
    output = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return output.transpose(1, 2).contiguous(), None


def own_part(rank, inputs):
    """The part of a batch that a process takes, with its positions and the token that follows each."""
    following = torch.nn.functional.pad(inputs["labels"], (0, 1), value=-100)[:, 1:]
    positions = torch.arange(following.shape[1])[None]
    taken = slice(rank * following.shape[1] // 2, (rank + 1) * following.shape[1] // 2)
    return {
        "input_ids": inputs["input_ids"][:, taken],
        "position_ids": positions[:, taken],
        "labels": following[:, taken],
        "shift_labels": following[:, taken].contiguous(),
        "num_items_in_batch": (following != -100).sum(),
    }


def reduced(model, batches):
    """As `gradients`, of the losses of both processes."""
    rank = torch.distributed.get_rank()
    losses, found = gradients(model, [own_part(rank, inputs) for inputs in batches])
    for gradient in found.values():
        torch.distributed.all_reduce(gradient)
    return losses, found


def spread(model):
    AttentionInterface.register("gathering", gathering_attention)
    AttentionMaskInterface.register("gathering", lambda *_, **__: None)
    model.set_attn_implementation("gathering")
    return model


def over_two(rank, keywords, head):
    compare(rank, spread, made(**keywords), split=False, find=reduced, head=head, number=2)


@pytest.mark.parametrize("keywords", [{}, {"dynamics": rf.Hamiltonian()}], ids=["block", "branch"])
def test_attention_that_exchanges_keys_and_values_is_exchanged_again(pair, keywords):
    for head in (False, True):
        pair.run(over_two, keywords, head)
