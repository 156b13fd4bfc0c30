import dataclasses
import inspect
import json
import math
import pydoc
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

import revformers as rf
from revformers.dynamics import DYNAMICS, Coefficients, create, from_dict

EXAMPLES = [
    rf.Residual(),
    rf.Midpoint(0.25, readout="mean"),
    rf.Midpoint(granularity="branch"),
    rf.BlendedMidpoint("1/4", start="zero"),
    rf.BlendedMidpoint([0.5, -2], step_size=0.5),
    rf.BlendedMidpoint(0.5, step_size=[0.5, 1.25]),
    rf.BlendedMidpoint.random(7),
    rf.TwoEvaluationMidpoint(1),
    rf.TwoEvaluationMidpoint(["1/4", "1/2"]),
    rf.Leapfrog(0.5),
    rf.Hamiltonian(),
]


@pytest.mark.parametrize("dynamics", EXAMPLES, ids=lambda dynamics: dynamics.recurrence)
def test_a_dynamics_survives_json(dynamics):
    assert from_dict(json.loads(json.dumps(dynamics.to_dict()))) == dynamics


def test_every_dynamics_of_the_table_is_among_the_examples():
    assert {type(example) for example in EXAMPLES} == set(DYNAMICS.values())


@pytest.mark.parametrize("kind", DYNAMICS.values(), ids=lambda kind: kind.name)
def test_help_lists_and_describes_every_option_with_its_default(kind):
    parameters = inspect.signature(kind).parameters
    assert set(parameters) == {field.name for field in dataclasses.fields(kind)}
    for name, parameter in parameters.items():
        assert parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        assert parameter.default is not parameter.empty
        assert f"    {name}: " in kind.__doc__
    text = pydoc.plain(pydoc.render_doc(kind))
    for name in ("granularity", "start", "readout"):
        assert re.search(rf"{name}: .* = '{parameters[name].default}'", text)


@pytest.mark.parametrize(("kind", "evaluations"), [(rf.BlendedMidpoint, 1), (rf.TwoEvaluationMidpoint, 2)])
def test_a_dynamics_says_how_many_layers_a_step_evaluates(kind, evaluations):
    assert kind.evaluations_per_step == evaluations
    assert [kind("1/4").previous_update(layer) for layer in (0, 1)] == [0.0, (evaluations - 1) / 4]


@pytest.mark.parametrize("dynamics", EXAMPLES, ids=lambda dynamics: dynamics.recurrence)
def test_every_dynamics_keeps_a_constant_stream_constant(dynamics):
    # a + b = 1: where no layer adds anything, p stays p, as in the ordinary network.
    coefficients = dynamics.coefficients(1)
    assert coefficients.previous + coefficients.current == 1


def test_coefficients_are_those_of_the_paper():
    assert rf.Midpoint(0.25).coefficients(0) == Coefficients(Fraction(1), Fraction(0), 0.5)
    assert rf.Leapfrog(0.5).coefficients(3) == Coefficients(Fraction(-1), Fraction(2), 0.25)
    assert rf.BlendedMidpoint(0.25).coefficients(0) == Coefficients(Fraction(1, 4), Fraction(3, 4), 1.0)
    assert rf.Hamiltonian().coefficients(0) == Coefficients(Fraction(1), Fraction(0), 1.0)
    assert rf.Hamiltonian().granularity == "branch"


@pytest.mark.parametrize(
    ("blend", "bits"),
    [(1, 0), (-1, 0), ("3/2", 0), (0.5, 1), (-0.75, 1), (0.25, 2), ("1/3", 2), ("1/16", 4), ("1/256", 8)],
)
def test_side_information_is_the_theoretical_number_of_bits(blend, bits):
    assert rf.BlendedMidpoint(blend).side_information_bits(0) == bits


@given(st.integers(1, 256), st.integers(1, 256))
def test_side_information_counts_the_neighbours_that_a_contraction_merges(numerator, denominator):
    merged = math.ceil(Fraction(denominator, numerator))
    expected = math.ceil(math.log2(merged)) if merged > 1 else 0
    assert Coefficients(Fraction(numerator, denominator), Fraction(0), 1.0).side_information_bits == expected


def test_random_blends_are_those_of_the_paper():
    dynamics = rf.BlendedMidpoint.random(0)
    blends = [dynamics.layer_blend(layer) for layer in range(400)]
    assert all(Fraction(1, 2) <= abs(blend) <= Fraction(3, 2) for blend in blends)
    assert 120 < sum(blend < 0 for blend in blends) < 280
    assert 120 < sum(abs(blend) < 1 for blend in blends) < 280
    assert blends == [rf.BlendedMidpoint.random(0).layer_blend(layer) for layer in range(400)]
    assert blends != [rf.BlendedMidpoint.random(1).layer_blend(layer) for layer in range(400)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rf.BlendedMidpoint(0), "has no inverse"),
        (lambda: rf.BlendedMidpoint(1e-9), "read as 0"),
        (lambda: rf.BlendedMidpoint(math.nan), "must be finite"),
        (lambda: rf.BlendedMidpoint([0.5, math.inf]), "must be finite"),
        (lambda: rf.BlendedMidpoint([]), "empty sequence"),
        (lambda: rf.BlendedMidpoint("half"), "a fraction such as"),
        (lambda: rf.BlendedMidpoint("1/1000"), "denominator beyond 256"),
        (lambda: rf.BlendedMidpoint(), "exactly one of them"),
        (lambda: rf.BlendedMidpoint(0.5, random_seed=1), "exactly one of them"),
        (lambda: rf.BlendedMidpoint([0.5, 0.5]).check(3), "2 blends for a model of 3 layers"),
        (lambda: rf.BlendedMidpoint(2000).coefficients(0), "terms"),
        (lambda: Coefficients(Fraction(1, 1000), Fraction(1), 1.0), "do not fit a byte"),
        (lambda: rf.Midpoint(0), "positive finite step_size"),
        (lambda: rf.Midpoint("0.5"), "takes a number as step_size"),
        (lambda: rf.Leapfrog(math.inf), "positive finite step_size"),
        (lambda: rf.Midpoint(readout="first"), "no readout 'first'"),
        (lambda: rf.Hamiltonian(granularity="block"), "steps by branch"),
        (lambda: rf.Residual().side_information_bits(0), "cannot be undone"),
        (lambda: create("euler"), "no dynamics called 'euler'; choose one of residual"),
        (lambda: create("midpoint", h=1), "no option 'h'; it takes step_size"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
