import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revformers.engine.proof.checksum import BLOCK, COLUMNS, _factors, checksum, constant_storage, layout_of

LARGE = 3 * BLOCK + 77
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]


def values(shape, dtype=torch.float32):
    return (torch.randn(shape) * 100).to(dtype)


def test_the_checksum_of_few_words_is_the_sum_of_the_products_of_their_halves():
    tensor = values(64)
    halves = np.frombuffer(tensor.numpy().tobytes(), np.int32).astype(np.int64)
    factors = _factors(torch.device("cpu")).numpy()
    with np.errstate(over="ignore"):
        expected = (halves * factors[:64]).sum()
    assert checksum(tensor) == expected
    assert len(set(factors.tolist())) == len(factors)
    assert (factors % 2 != 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 3, 8, 1000, 2 * LARGE])
def test_one_changed_element_shows(dtype, count):
    tensor = values(count, dtype)
    for place in {0, count // 2, count - 1}:
        changed = tensor.clone()
        changed[place] = changed[place].logical_not() if dtype == torch.bool else 7 + 2 * (changed[place] == 7)
        assert checksum(changed) != checksum(tensor)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, LARGE - 1), st.integers(0, LARGE - 1), st.sampled_from([20, 1000, LARGE]))
def test_words_that_trade_places_and_errors_that_cancel_show(left, right, count):
    left, right = left % count, right % count
    tensor = torch.arange(count, dtype=torch.int64) ** 2
    if left == right or (left // BLOCK == right // BLOCK and (left - right) % COLUMNS == 0 and count >= BLOCK):
        return
    swapped = tensor.clone()
    swapped[[left, right]] = tensor[[right, left]]
    assert checksum(swapped) != checksum(tensor)
    compensated = tensor.clone()
    compensated[left] += 5
    compensated[right] -= 5
    assert compensated.sum() == tensor.sum()
    assert checksum(compensated) != checksum(tensor)


@pytest.mark.parametrize("width", [32, 384, 576, 2048])
def test_tokens_that_trade_places_show(width):
    tensor = values((2, 2100, width))
    for other in (1, 7, 128, 521, 1042, 2053):
        swapped = tensor.clone()
        swapped[1, [0, other]] = tensor[1, [other, 0]]
        assert checksum(swapped) != checksum(tensor)
    assert checksum(tensor.flip(0)) != checksum(tensor)


def test_a_view_is_read_where_it_lies():
    heads = values((2, 5, 4, 8))
    assert checksum(heads.transpose(1, 2)) == checksum(heads)
    assert layout_of(heads.transpose(1, 2)) != layout_of(heads) == 0
    assert checksum(heads[:, 1:3]) == checksum(heads[:, 1:3].clone())
    expanded = values((4, 1, 6)).expand(4, 5, 6)
    assert checksum(expanded) == checksum(expanded[:, 0])
    assert layout_of(expanded) != layout_of(values((4, 5, 6)).transpose(0, 1)) != 0
    odd = values(9).to(torch.bfloat16)[1:]
    assert checksum(odd) == checksum(odd.clone())
    assert checksum(odd.conj()) == checksum(odd)


def test_the_order_of_tensors_counts():
    first, second = values(40), values(40)
    assert checksum(first, second) != checksum(second, first)


def test_a_checksum_is_there_without_numbers():
    assert checksum(torch.empty(5 * LARGE, device="meta")).is_meta


@pytest.mark.parametrize("shape", [(4, 8, 16), (4, 64, 64), (2, 700, 192)])
@pytest.mark.parametrize("change", [torch.neg, lambda x: x * 2, lambda x: x * 16, lambda x: torch.where(x > 0, x, -x)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64])
def test_changes_of_the_highest_bits_alone_show(shape, change, dtype):
    """The sign of a float64 is the highest bit of a word, which an even number of changes would leave as it was."""
    tensor = values(shape).to(dtype)
    if dtype.is_complex:
        tensor, change = tensor + 1j, torch.conj
    changed = change(tensor)
    assert checksum(changed) != checksum(tensor)


def test_a_change_in_every_second_number_shows():
    tensor = values((2, 700, 192))
    for step in (2, 3, 4, 8):
        changed = tensor.clone()
        changed[..., step - 1 :: step].neg_()
        assert checksum(changed) != checksum(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.bool])
def test_one_element_may_have_any_strides(dtype):
    numbers = torch.tensor([1, 0, 0, 1], dtype=dtype)
    for one in (numbers[:1].expand(3, 2), numbers[::3][:1], numbers[0].expand(1), numbers.view(2, 2)[:, :1][:1]):
        assert torch.equal(checksum(one), checksum(numbers[:1]))
    assert not torch.equal(checksum(numbers[1:2].expand(3, 2)), checksum(numbers[:1]))


def test_the_numbers_that_words_are_multiplied_by_are_made_once():
    _factors.cache_clear()
    with torch.inference_mode():
        checksum(values(3))
    factors = _factors(torch.device("cpu"))
    assert factors.untyped_storage().data_ptr() == constant_storage().data_ptr()
    assert not factors.is_inference()
