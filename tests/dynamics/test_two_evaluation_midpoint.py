from fractions import Fraction

import pytest

import revformers as rf


def test_the_layer_before_adds_the_blend_of_its_update_but_for_the_first():
    dynamics = rf.TwoEvaluationMidpoint(["1/4", "1/2", 1])
    assert [dynamics.previous_update(layer) for layer in range(3)] == [0.0, 0.5, 1.0]
    assert dynamics.coefficients(1) == rf.BlendedMidpoint("1/2").coefficients(0)


def test_the_first_step_gives_back_what_the_blend_takes():
    """Where f is the same twice, p[l+1] = p[l] + f: the ordinary network (arXiv 2512.02056, section 4)."""
    dynamics, update = rf.TwoEvaluationMidpoint("1/4"), Fraction(3)
    previous, current = Fraction(0), update
    step = dynamics.coefficients(1)
    successor = step.previous * previous + step.current * current + Fraction(step.update) * update
    assert successor + Fraction(dynamics.previous_update(1)) * update == 2 * update


def test_the_recurrence_in_words():
    assert rf.TwoEvaluationMidpoint(1).recurrence == "p[l+1] = p[l-1] + 0 p[l] + f(p[l]) + f[l-1](p[l])"
    assert rf.TwoEvaluationMidpoint(["1/4", 1]).recurrence == (
        "p[l+1] = a p[l-1] + (1 - a) p[l] + f(p[l]) + a f[l-1](p[l]), a given per layer"
    )


def test_mistakes_name_the_class():
    with pytest.raises(ValueError, match=r"^TwoEvaluationMidpoint takes either a blend or a random_seed"):
        rf.TwoEvaluationMidpoint()
    with pytest.raises(ValueError, match=r"^TwoEvaluationMidpoint has 1 blends, none of them for layer 1"):
        rf.TwoEvaluationMidpoint([0.5]).coefficients(1)


def test_steps_by_branch_are_refused():
    with pytest.raises(ValueError, match="steps by block only"):
        rf.TwoEvaluationMidpoint(1, granularity="branch")
