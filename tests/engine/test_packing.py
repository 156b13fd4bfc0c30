import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from revformers.engine.packing import GROUP, pack, packed_size, unpack


def packed(values, bits):
    out = torch.empty(packed_size(values.numel(), bits), dtype=torch.uint8)
    pack(values, bits, out)
    return out


@given(st.integers(1, 8), st.integers(1, 70), st.integers(0, 2**31))
def test_unpack_undoes_pack_in_the_theoretical_size(bits, count, seed):
    values = torch.randint(2**bits, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    assert packed(values, bits).numel() <= (count + 7) * bits / 8
    assert torch.equal(unpack(packed(values, bits), bits, values.shape), values)


def test_the_shape_comes_back():
    values = torch.randint(8, (2, 3, 5), dtype=torch.uint8)
    assert torch.equal(unpack(packed(values, 3), 3, values.shape), values)


@pytest.mark.parametrize("bits", range(1, 9))
def test_groups_can_be_packed_one_by_one(bits):
    values = torch.randint(2**bits, (2 * GROUP + 11,), dtype=torch.uint8)
    pieces = [packed(values[:GROUP], bits), packed(values[GROUP:], bits)]
    assert torch.equal(torch.cat(pieces), packed(values, bits))
    assert torch.equal(unpack(torch.cat(pieces), bits, values.shape), values)
