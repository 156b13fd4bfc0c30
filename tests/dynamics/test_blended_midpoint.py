import math
from fractions import Fraction

import pytest

import revformers as rf
from revformers import dynamics
from revformers.dynamics import Coefficients


def test_the_other_part_is_the_current_state():
    assert rf.BlendedMidpoint(0.25).coefficients(0) == Coefficients(Fraction(1, 4), Fraction(3, 4), 1.0)
    dynamics = rf.BlendedMidpoint([0.5, -2], step_size=[0.5, 1.25])
    assert dynamics.coefficients(1) == Coefficients(Fraction(-2), Fraction(3), 1.25)
    dynamics.check(2)


def test_a_float_is_read_as_the_nearest_fraction():
    assert rf.BlendedMidpoint(1 / 3).blend == Fraction(1, 3)
    assert rf.BlendedMidpoint(0.1).blend == Fraction(1, 10)
    assert rf.BlendedMidpoint(0.123456).blend.denominator <= 256


@pytest.mark.parametrize(
    ("blend", "bits"),
    [(1, 0), (-1, 0), ("3/2", 0), (0.5, 1), (-0.75, 1), (0.25, 2), ("1/3", 2), ("1/16", 4), ("1/256", 8)],
)
def test_side_information_is_the_theoretical_number_of_bits(blend, bits):
    assert rf.BlendedMidpoint(blend).side_information_bits(0) == bits


def test_random_blends_are_those_of_the_paper():
    dynamics = rf.BlendedMidpoint.random(0)
    blends = [dynamics.layer_blend(layer) for layer in range(400)]
    assert all(Fraction(1, 2) <= abs(blend) <= Fraction(3, 2) for blend in blends)
    assert 120 < sum(blend < 0 for blend in blends) < 280
    assert 120 < sum(abs(blend) < 1 for blend in blends) < 280
    assert blends == [rf.BlendedMidpoint.random(0).layer_blend(layer) for layer in range(400)]
    assert blends != [rf.BlendedMidpoint.random(1).layer_blend(layer) for layer in range(400)]


def test_the_recurrence_in_words():
    assert rf.BlendedMidpoint("1/4", 0.5).recurrence == "p[l+1] = 1/4 p[l-1] + 3/4 p[l] + 0.5 f(p[l])"
    of_layers = rf.BlendedMidpoint([1, "1/2"], [1.0, 2.0]).recurrence
    assert of_layers == "p[l+1] = a p[l-1] + (1 - a) p[l] + h f(p[l]), a given per layer"
    assert rf.BlendedMidpoint.random(1).recurrence.endswith("a ±1 + U(-1/2, 1/2)")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rf.BlendedMidpoint(0), "has no inverse"),
        (lambda: rf.BlendedMidpoint(1e-9), "is 0 in fractions of 256"),
        (lambda: rf.BlendedMidpoint(math.nan), "must be finite"),
        (lambda: rf.BlendedMidpoint([0.5, math.inf]), "must be finite"),
        (lambda: rf.BlendedMidpoint([]), "empty sequence"),
        (lambda: rf.BlendedMidpoint("half"), "a fraction such as"),
        (lambda: rf.BlendedMidpoint(True), "A blend is a number, not True"),
        (lambda: rf.BlendedMidpoint("1/1000"), "denominator beyond 256"),
        (lambda: rf.BlendedMidpoint(), "exactly one of them"),
        (lambda: rf.BlendedMidpoint(0.5, random_seed=1), "exactly one of them"),
        (lambda: rf.BlendedMidpoint(random_seed=1.5), "whole number as random_seed"),
        (lambda: rf.BlendedMidpoint([0.5, 0.5]).check(3), "2 blends for a model of 3 layers"),
        (lambda: rf.BlendedMidpoint(0.5, [1.0] * 4).check(3), "4 step sizes for a model of 3 layers"),
        (lambda: rf.BlendedMidpoint([0.5] * 2).coefficients(2), "2 blends, none of them for layer 2"),
        (lambda: rf.BlendedMidpoint(2000), "at most 1024 in magnitude; 2000 is not"),
        (lambda: rf.BlendedMidpoint(-1e300), "at most 1024 in magnitude; -1e"),
        (lambda: rf.BlendedMidpoint("1e19"), "at most 1024 in magnitude; '1e19' is not"),
        (lambda: rf.BlendedMidpoint("1/" + "3" * 4000), r"a fraction such as '1/4', not '1/33\S*\.\.\.3*'\.$"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("blend", ["1e99999999", "1E-99999999", "-1e+999999999999", "1" * 100_000])
def test_a_blend_whose_digits_would_fill_the_memory_is_refused_at_once(blend):
    """Fraction would compute 10 to that power first; the test itself would not end."""
    with pytest.raises(ValueError, match="a fraction such as '1/4', not"):
        dynamics.from_dict({"name": "blended_midpoint", "blend": blend})
    assert rf.BlendedMidpoint("25e-2").blend == Fraction(1, 4)
