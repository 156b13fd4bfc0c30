import torch
from hypothesis import given
from hypothesis import strategies as st

from revformers.exact.packing import pack, packed_size, unpack


@given(st.integers(1, 8), st.integers(1, 70), st.integers(0, 2**31))
def test_unpack_undoes_pack_in_the_theoretical_size(bits, count, seed):
    values = torch.randint(2**bits, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    packed = pack(values, bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == packed_size(count, bits)
    assert packed.numel() <= (count + 7) * bits / 8
    assert torch.equal(unpack(packed, bits, values.shape), values)


def test_the_shape_comes_back():
    values = torch.randint(8, (2, 3, 5), dtype=torch.uint8)
    assert torch.equal(unpack(pack(values, 3), 3, values.shape), values)
