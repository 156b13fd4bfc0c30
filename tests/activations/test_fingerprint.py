import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from revformers.activations.fingerprint import Fingerprint, sum_of_bits


def fingerprint_of(function):
    taken = Fingerprint()

    def pack(tensor):
        taken.add(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return taken.versions, taken.sum()


def test_the_last_two_activations_are_summed_and_neither_parameters_nor_masks():
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    hidden = torch.randn(4, 8, requires_grad=True)
    first.weight.data.add_(1)
    middle = first(hidden).sigmoid()

    def run():
        nn.functional.dropout(second(middle.exp()), 0.5)

    versions, total = fingerprint_of(run)
    # The exponential saves its result, and the product its input, which is the same tensor.
    assert total == bits(middle.exp(), middle.exp())
    assert versions == [second.weight._version]
    second.weight.data.add_(0)
    with torch.no_grad():
        second.weight.mul_(1)
    assert fingerprint_of(run)[0] == [versions[0] + 1]


def test_under_autocast_an_activation_is_among_the_last_two():
    layer, hidden = nn.Linear(8, 8), torch.randn(4, 8, requires_grad=True)

    def run(value):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            layer(value * 2)

    _, total = fingerprint_of(lambda: run(hidden))
    _, again = fingerprint_of(lambda: run(hidden))
    changed = hidden.detach().clone()
    changed[0, 0] += 1
    _, other = fingerprint_of(lambda: run(changed.requires_grad_()))
    assert total == again != other


def test_where_nothing_is_saved_nothing_is_compared():
    assert fingerprint_of(lambda: None) == ([], None)


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


def bits(*tensors):
    """The sum of the eight-byte words of tensors, by NumPy."""
    with np.errstate(over="ignore"):
        return sum(
            np.frombuffer(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes(), np.int64).sum()
            for tensor in tensors
        )
