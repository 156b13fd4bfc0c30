import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from revformers.engine.fixed_point import INT64, USABLE_SHARE, FixedPoint
from revformers.engine.ops.cpu import read

INT32 = FixedPoint(torch.int32, 16)
FORMATS = [INT64, INT32, FixedPoint(torch.int32, 10)]


def test_what_states_may_not_fill_covers_what_bfloat16_rounds_down():
    """Which is nearly 2**-8 of a number just below the middle between a power of two and the next number."""
    values = torch.linspace(1, 2, 2**16 + 1, dtype=torch.float64)
    lost = ((values - values.bfloat16().double()) / values).max().item()
    assert 0.99 * 2.0**-8 < lost < 2.0**-8 < 1 - USABLE_SHARE


@given(st.sampled_from(FORMATS), st.floats(-1, 1, width=32))
def test_float32_is_held_to_the_last_digit_of_fixed_point(fixed_point, share):
    value = torch.tensor(share * fixed_point.maximum_magnitude).item()
    held = fixed_point.quantise(torch.tensor([value]))
    assert held.dtype == fixed_point.dtype
    assert held.item() == math.trunc(value * 2**fixed_point.fraction_bits)
    if abs(value) >= 2.0 ** (23 - fixed_point.fraction_bits):
        assert read(held, torch.float32, fixed_point.fraction_bits).item() == value


@pytest.mark.parametrize("fixed_point", [INT64, FixedPoint(torch.int32, 14)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_read_undoes_quantise_where_the_dtype_is_coarser(dtype, fixed_point):
    values = torch.linspace(1024, 60000, 1000).to(dtype)
    if fixed_point.dtype == torch.int32 and dtype.itemsize > 2:
        values = values.round()
    assert torch.equal(read(fixed_point.quantise(values), dtype, fixed_point.fraction_bits), values)


def test_the_weight_multiplies_and_the_input_is_not_written():
    values = torch.tensor([0.5, -3.0])
    assert INT64.quantise(values, 0.5).tolist() == [2**28, -3 * 2**29]
    assert INT32.quantise(values, 0.5).tolist() == [2**14, -3 * 2**15]
    assert values.tolist() == [0.5, -3.0]


@pytest.mark.parametrize("fixed_point", FORMATS)
def test_the_range_is_that_of_the_integers_with_head_room(fixed_point):
    whole = 2.0 ** (torch.iinfo(fixed_point.dtype).bits - 1) / 2.0**fixed_point.fraction_bits
    assert 0.99 * whole < fixed_point.largest_sum < whole
    assert fixed_point.maximum_magnitude == min(fixed_point.largest_sum, 2.0**22)
