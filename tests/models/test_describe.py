import pytest

import revformers as rf
from tests.conversion.test_convert import TEXT, smooth_llama
from tests.test_reversible import llama


def test_an_ordinary_network_is_called_one():
    assert str(rf.describe(llama())) == "LlamaForCausalLM: an ordinary network"


def test_a_converted_model_is_described_in_full():
    model = smooth_llama()
    conversion = rf.convert(model, 0.5, TEXT)
    description = rf.describe(model)
    assert description.reversible
    assert description.bits == 0.5
    assert description.predictors == 6
    assert description.predictor_parameters == conversion.added_parameters
    shown = str(description)
    assert conversion.dynamics.recurrence in shown
    assert "rebuild: keeps two states, and side information" in shown
    assert f"6, {conversion.added_parameters:,} parameters" in shown
    assert "auto: 32-bit integers up to 32,512 with 16 binary digits" in shown


@pytest.mark.parametrize(
    ("dynamics", "activations", "words"),
    [
        (rf.Midpoint(), "rebuild", "keeps two states\n"),
        (rf.BlendedMidpoint("1/4"), "checkpoint", "keeps the input of every step\n"),
        (rf.Residual(), "store", "none, there is no inverse"),
        (rf.Hamiltonian(), rf.Budget("1GiB"), "as many layers as fit the budget"),
    ],
)
def test_what_is_kept_follows_the_policy_and_the_dynamics(dynamics, activations, words):
    assert words in str(rf.describe(rf.make_reversible(llama(), dynamics, activations)))


@pytest.mark.parametrize(("states", "words"), [("int64", "int64: 64-bit"), ("int32:12", "int32:12: 32-bit")])
def test_the_states_are_described_as_they_were_set(states, words):
    model = rf.make_reversible(llama(), rf.Midpoint(), states=states)
    assert rf.describe(model).states.startswith(words)
    assert f"  states             {words}" in str(rf.describe(model))


def test_the_first_lines_of_a_printed_model_say_it():
    model = rf.make_reversible(llama(), rf.Leapfrog())
    assert "reversible: Leapfrog, activations=rebuild, states=auto" in repr(model).splitlines()[1]
    assert "reversible" not in repr(rf.make_residual(model))
