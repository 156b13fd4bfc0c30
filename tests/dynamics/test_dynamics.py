import dataclasses
import inspect
import json
import pydoc
import re

import pytest

import revformers as rf
from revformers import dynamics as dynamics_module
from revformers.dynamics import DYNAMICS, create, from_dict, register

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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create("euler"), "no dynamics called 'euler'; choose one of residual"),
        (lambda: create("midpoint", h=1), "no option 'h'; it takes step_size"),
    ],
)
def test_unknown_names_and_options_are_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_dynamics_of_ones_own_is_registered_under_a_name_that_is_free(monkeypatch):
    monkeypatch.setattr(dynamics_module, "DYNAMICS", dict(DYNAMICS))

    @register
    class Own(rf.Midpoint):
        name = "own"

    assert create("own", step_size=0.25) == Own(0.25)
    assert register(Own) is Own
    with pytest.raises(ValueError, match="The name 'own' belongs to Own; give Leapfrog another one"):
        register(type("Leapfrog", (rf.Leapfrog,), {"name": "own"}))
