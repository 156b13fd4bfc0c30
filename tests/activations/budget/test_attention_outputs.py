import gc

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from revformers.activations.budget.attention_outputs import AttentionKeeper, _KernelOutput
from revformers.engine.field import OtherEvaluationError
from revformers.errors import RebuildMismatchError

KERNEL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


class Calls(TorchDispatchMode):
    """Counts how often the attention kernel runs."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is KERNEL
        return func(*args, **(kwargs or {}))


class Field(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer, self.dropout = nn.Linear(8, 24), nn.Linear(8, 8), dropout

    def forward(self, hidden):
        query, key, value = self.inner(hidden).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(query, key, value, dropout_p=self.dropout, is_causal=True)
        return self.outer(mixed.transpose(1, 2).flatten(-2))


HIDDEN = torch.randn(2, 5, 8, requires_grad=True)


def test_the_second_evaluation_returns_the_same_bits_without_the_kernel_and_the_third_runs_it_again():
    keeper, expected = AttentionKeeper(Field(), "layer 3"), Field()(HIDDEN)
    for runs in (1, 0, 1):
        with Calls() as calls:
            assert torch.equal(keeper(HIDDEN), expected)
        assert calls.count == runs


def test_forgetting_runs_the_kernel_again():
    keeper = AttentionKeeper(Field(), "layer 3")
    keeper(HIDDEN)
    keeper.forget()
    with Calls() as calls:
        keeper(HIDDEN)
    assert calls.count == 1


def test_what_is_kept_and_spared_is_counted():
    keeper = AttentionKeeper(Field(), "layer 3")
    keeper(HIDDEN)
    assert keeper.kept_bytes == 4 * (2 * 5 * 8 + 2 * 2 * 5)  # the output, and a log-sum-exp for each head and token
    assert keeper.attention_operations == 2 * (2 * 2 * 2 * 5 * 5 * 4)  # two products of 5 x 5 x 4, for 2 x 2 heads
    linear = AttentionKeeper(lambda hidden: field.outer(field.inner(hidden)[..., :8]), "layer 3")
    field = Field()
    with FlopCounterMode(display=False) as reference:
        linear(HIDDEN)
    assert linear.operations == reference.get_total_flops() == keeper.operations - keeper.attention_operations
    assert linear.attention_operations == linear.kept_bytes == 0


def test_attention_without_a_fused_kernel_is_not_kept():
    keeper = AttentionKeeper(Field(dropout=0.5), "layer 3")  # on a CPU PyTorch has none with dropout
    keeper(HIDDEN)
    assert keeper.kept_bytes == keeper.attention_operations == 0
    assert keeper.operations > 0


def test_an_exception_in_the_second_evaluation_leaves_nothing_half_used():
    field = Field()
    keeper = AttentionKeeper(field, "layer 3")
    expected = keeper(HIDDEN)
    handle = field.outer.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        keeper(HIDDEN)
    handle.remove()
    assert torch.equal(keeper(HIDDEN), expected)


def test_a_layer_that_writes_into_what_was_kept_is_refused():
    """Autograd needs the output as it was, and refuses it as well, where it stores the output."""

    def field(hidden):
        return scaled_dot_product_attention(hidden, hidden, hidden).mul_(2)

    hidden = torch.randn(1, 2, 5, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        field(hidden).sum().backward()
    keeper = AttentionKeeper(field, "layer 3")
    keeper(hidden)
    with pytest.raises(RebuildMismatchError, match="writes into the output of aten::_scaled_dot_product"):
        keeper(hidden)


def test_other_kernels_in_the_second_evaluation_are_refused():
    layer = Field()
    keeper = AttentionKeeper(lambda hidden: layer(layer(hidden)) if keeper.twice else layer(hidden), "layer 3")
    keeper.twice = False
    keeper(HIDDEN)
    keeper.twice = True
    with pytest.raises(OtherEvaluationError, match="more attention kernels"):
        keeper(HIDDEN)


def test_what_one_kernel_returned_is_not_returned_for_another():
    kept = _KernelOutput("aten::one", (torch.ones(2), 3))
    assert kept.value_of("aten::one", "layer 3")[1] == 3
    with pytest.raises(OtherEvaluationError, match="ran aten::other where the forward pass ran aten::one"):
        kept.value_of("aten::other", "layer 3")


def test_nothing_but_the_keeper_holds_what_it_kept():
    keeper, hidden = AttentionKeeper(Field(), "layer 3"), HIDDEN.detach().requires_grad_()
    gc.disable()
    try:
        update = keeper(hidden)
        kept = [StorageWeakRef(value.untyped_storage()) for value in keeper._outputs[0]._values]
        del update
        assert not any(reference.expired() for reference in kept)
        keeper.forget()
        assert all(reference.expired() for reference in kept)
    finally:
        gc.enable()
