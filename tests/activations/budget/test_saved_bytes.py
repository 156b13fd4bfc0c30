import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from revformers.activations.budget.saved_bytes import CountingTape, SavedBytes
from revformers.engine.states import StatePair
from revformers.engine.ticket import kept
from tests.engine.network import WIDTH, Network


def count(function):
    saved = SavedBytes()

    def pack(tensor):
        saved.add(tensor)
        return tensor.detach()

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return saved.count


def test_every_block_counts_once_and_weights_do_not():
    linear = nn.Linear(8, 4)
    hidden = torch.randn(3, 8, requires_grad=True)
    assert count(lambda: linear(hidden)) == hidden.nbytes
    assert count(lambda: linear(hidden) + linear(hidden)) == hidden.nbytes
    assert count(lambda: linear.requires_grad_(False)(hidden)) == 0


def test_a_view_counts_its_whole_block():
    hidden = torch.randn(3, 8, requires_grad=True)
    assert count(lambda: hidden[:, 0] * hidden[:, 1]) == hidden.nbytes


def test_memory_that_was_freed_and_used_again_counts_again():
    saved = SavedBytes()
    for _ in range(5):
        saved.add(torch.empty(100))
    assert saved.count == 5 * 400


def test_the_parts_of_a_wrapper_count():
    from torch.testing._internal.two_tensor import TwoTensor

    saved = SavedBytes()
    saved.add(TwoTensor(torch.empty(10), torch.empty(10)))
    assert saved.count == 80


def test_the_parts_of_a_sparse_tensor_count():
    rows, numbers = torch.tensor([0, 1, 2]), torch.tensor([0, 1])
    values = torch.ones(2)
    of_kinds = (
        torch.sparse_coo_tensor(torch.stack((numbers, numbers)), values, (2, 2)),
        torch.sparse_csr_tensor(rows, numbers, values, (2, 2)),
        torch.sparse_csc_tensor(rows, numbers, values, (2, 2)),
    )
    for sparse, indices in zip(of_kinds, (2 + 2, 3 + 2, 3 + 2), strict=True):
        saved = SavedBytes()
        saved.add(sparse)
        assert saved.count == 8 * indices + 4 * 2


def test_a_tape_counts_what_autograd_would_save_without_it():
    layer, hidden = Network().layers[0], torch.randn(1, 2, WIDTH, requires_grad=True) * 1
    counted, expected = SavedBytes(), SavedBytes()
    tape = CountingTape(StatePair.empty(hidden.device), counted)
    update = tape.evaluate("layer 0", None, layer, hidden, keep=kept)

    def pack(tensor):
        expected.add(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        again = layer(hidden)
    assert counted.count == expected.count > 3 * WIDTH
    assert torch.equal(torch.autograd.grad(update.sum(), hidden)[0], torch.autograd.grad(again.sum(), hidden)[0])
