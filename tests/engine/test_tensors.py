import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from revformers.engine.tensors import is_plain, parts_in_memory

DENSE = torch.eye(3)
SPARSE = [DENSE.to_sparse(), DENSE.to_sparse_csr(), DENSE.to_sparse_csc(), DENSE.to_sparse_bsr((1, 1))]


@pytest.mark.parametrize("tensor", [DENSE, DENSE.T, nn.Parameter(DENSE), DENSE.to(torch.int8)], ids=str)
def test_a_block_of_numbers_is_plain_and_its_only_part(tensor):
    assert is_plain(tensor)
    (part,) = parts_in_memory(tensor)
    assert part is tensor


@pytest.mark.parametrize("tensor", SPARSE, ids=lambda tensor: str(tensor.layout))
def test_the_parts_of_a_sparse_tensor_are_its_indices_and_values(tensor):
    assert not is_plain(tensor)
    parts = list(parts_in_memory(tensor))
    assert all(map(is_plain, parts))
    assert sum(part.sum().item() for part in parts if part.is_floating_point()) == 3
    assert len(parts) == (2 if tensor.layout is torch.sparse_coo else 3)


def test_subclasses_nested_and_quantized_tensors_are_not_plain():
    class Subclass(torch.Tensor):
        pass

    assert not is_plain(DENSE.as_subclass(Subclass))
    assert not is_plain(torch.nested.nested_tensor([DENSE, DENSE[:2]]))
    assert not is_plain(torch.quantize_per_tensor(DENSE, 0.1, 0, torch.qint8))


def test_the_parts_of_a_wrapper_are_those_of_what_it_wraps():
    wrapper = TwoTensor(DENSE, DENSE.clone())
    assert not is_plain(wrapper)
    assert [part.data_ptr() for part in parts_in_memory(wrapper)] == [DENSE.data_ptr(), wrapper.b.data_ptr()]
