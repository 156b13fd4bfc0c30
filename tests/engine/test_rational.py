import math
from fractions import Fraction

import torch
from hypothesis import given
from hypothesis import strategies as st

from revformers.engine.rational import divide_, floor_divide_, multiply_

# The terms that `Coefficients` allows for a, and states that stay inside int64 with them.
factors = st.one_of(
    st.sampled_from([Fraction(1, 2), Fraction(-1, 4), Fraction(3, 128), Fraction(1, 256), Fraction(1, 3)]),
    st.builds(
        lambda numerator, denominator, sign: sign * Fraction(numerator, denominator),
        st.integers(1, 1024),
        st.integers(1, 256),
        st.sampled_from([1, -1]),
    ),
)
integers = st.one_of(st.integers(-600, 600), st.integers(-(2**52), 2**52))
states = st.lists(integers, min_size=1, max_size=20)


@given(states, factors, st.booleans())
def test_a_product_is_the_nearest_integer(values, factor, keep_remainder):
    products = torch.tensor(values)
    multiply_(products, factor, keep_remainder=keep_remainder)
    for value, product in zip(values, products.tolist(), strict=True):
        assert abs(product - factor * value) <= Fraction(1, 2)


@given(states, factors)
def test_division_undoes_multiplication(values, factor):
    products = torch.tensor(values)
    remainder = multiply_(products, factor, keep_remainder=True)
    assert (remainder is None) == (abs(factor) >= 1)
    if remainder is not None:
        assert remainder.dtype == torch.uint8
        assert remainder.max().item() < math.ceil(1 / abs(factor))
    assert divide_(products, factor, remainder) in (None, True)
    assert products.tolist() == values


@given(factors.filter(lambda factor: abs(factor) > 1))
def test_an_integer_beside_all_products_is_known_as_none(factor):
    near = torch.arange(-40, 41)
    products = near.clone()
    multiply_(products, factor, keep_remainder=True)
    possible = {product: divide_(torch.tensor([product]), factor, None).item() for product in range(-20, 21)}
    assert possible == {product: product in products.tolist() for product in possible}


def test_without_its_remainder_a_contraction_is_not_undone():
    values = torch.arange(-600, 600)
    products = values.clone()
    assert multiply_(products, Fraction(1, 3), keep_remainder=False) is None
    divide_(products, Fraction(1, 3), None)
    assert not torch.equal(products, values)


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1), st.integers(1, 1024))
def test_floor_division_is_that_of_python(values, divisor):
    divided = torch.tensor(values)
    floor_divide_(divided, divisor)
    assert divided.tolist() == [value // divisor for value in values]
