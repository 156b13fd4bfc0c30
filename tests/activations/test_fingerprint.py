import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from revformers.activations.fingerprint import Fingerprint, sum_of_bits


def fingerprint_of(function, input_size=32):
    """The fingerprint of what a function saves, and what it saves."""
    taken, saved = Fingerprint(input_size), []

    def pack(tensor):
        taken.add(tensor)
        saved.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return taken.sum(), saved


def bits(*tensors):
    """The sum of the eight-byte words of tensors, by NumPy."""
    with np.errstate(over="ignore"):
        octets = [tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() for tensor in tensors]
        return sum(np.frombuffer(part, np.int64).sum() for part in octets)


def test_the_last_activations_are_summed_and_parameters_are_not():
    layer, hidden = nn.Linear(8, 8), torch.randn(4, 8, requires_grad=True)

    def run():
        nn.functional.dropout(layer(hidden.sigmoid().exp()), 0.5).relu()

    total, saved = fingerprint_of(run)
    assert [tuple(tensor.shape) for tensor in saved] == [(4, 8), (4, 8), (4, 8), (8, 8), (4, 8), (4, 8)]
    assert saved[3]._base is layer.weight
    assert total == bits(saved[2], saved[4], saved[5])


@pytest.mark.parametrize("bias", [True, False])
def test_an_activation_is_among_the_last_under_autocast_and_dropout(bias):
    layer = nn.Linear(8, 8, bias=bias)
    hidden = torch.randn(4, 8)
    changed = hidden.clone()
    changed[0, 0] += 1
    sums = []
    for value in (hidden, hidden, changed):

        def run(value=value):
            torch.manual_seed(0)
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                nn.functional.dropout(layer(value.requires_grad_() * 2), 0.5)

        sums.append(fingerprint_of(run)[0])
    assert sums[0] == sums[1] != sums[2]


def test_a_leaf_counts_as_much_as_what_was_computed():
    """The input of a layer was computed in the forward pass, and is a leaf when the layer is evaluated again."""
    leaf = torch.randn(4, 8, requires_grad=True)
    inner = leaf * 1
    assert fingerprint_of(lambda: leaf.exp() * leaf)[0] == fingerprint_of(lambda: inner.exp() * inner)[0]


def test_small_tensors_do_not_count():
    """The kernels of some devices leave padding in what they save beside the activations."""
    hidden = torch.randn(4, 8, requires_grad=True)
    assert fingerprint_of(hidden.exp, input_size=4 * 33)[0] is None
    assert fingerprint_of(hidden.exp, input_size=4 * 32)[0] == bits(hidden.exp())


def test_where_nothing_is_saved_nothing_is_compared():
    assert fingerprint_of(lambda: None) == (None, [])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("size", [0, 1, 7, 8, 33])
def test_every_element_counts_whatever_size_and_place(dtype, size):
    values = torch.randn(size + 1).to(dtype)[1:]  # not at a multiple of eight bytes
    total = sum_of_bits(values)
    for index in range(size):
        changed = values.clone()
        changed.view(torch.uint8)[index * dtype.itemsize] ^= 1
        assert sum_of_bits(changed) != total


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_order_in_memory_does_not_matter_where_words_are_whole(dtype):
    heads = torch.randn(2, 5, 3, 8).to(dtype)
    assert sum_of_bits(heads.transpose(1, 2)) == sum_of_bits(heads) == bits(heads)
    assert sum_of_bits(heads.transpose(2, 3)) == bits(heads.transpose(2, 3))
    assert sum_of_bits(heads, heads) == bits(heads, heads)
    assert sum_of_bits(heads[0, 0, 0, 0].double()) == bits(heads[0, 0, 0, 0].double().view(1))
