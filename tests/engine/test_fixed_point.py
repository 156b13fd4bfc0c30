import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from revformers.engine.fixed_point import FRACTION_BITS, MAXIMUM_MAGNITUDE, quantise
from revformers.engine.ops.cpu import read


@given(st.floats(-MAXIMUM_MAGNITUDE, MAXIMUM_MAGNITUDE, width=32))
def test_float32_is_held_to_the_last_digit_of_fixed_point(value):
    held = quantise(torch.tensor([value])).item()
    assert held == math.trunc(value * 2**FRACTION_BITS)
    if abs(value) >= 2.0**-7:
        assert read(torch.tensor([held]), torch.float32).item() == value


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_read_undoes_quantise_where_the_dtype_is_coarser(dtype):
    values = torch.linspace(1, 60000, 1000).to(dtype)
    assert torch.equal(read(quantise(values), dtype), values)


def test_the_weight_multiplies_and_the_input_is_not_written():
    values = torch.tensor([0.5, -3.0])
    assert quantise(values, 0.5).tolist() == [2**28, -3 * 2**29]
    assert values.tolist() == [0.5, -3.0]
