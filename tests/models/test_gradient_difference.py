import math

import pytest
import torch
from torch import nn

from revformers.models import gradient_difference
from revformers.models.gradient_difference import Difference, Pass, difference_of

MODEL = nn.Linear(1, 1)
GRADIENTS = {"a": torch.tensor([1.0, -4.0]), "b": torch.tensor([0.5, torch.nan])}


def changed(**gradients):
    return Pass(2.0, GRADIENTS | {name: torch.tensor(values) for name, values in gradients.items()})


def test_equal_passes_do_not_differ_and_a_nan_equals_a_nan():
    found = difference_of(changed(), Pass(2.0, GRADIENTS), MODEL)
    assert found.equal
    assert not found.in_gradients_alone
    assert found.relative_error == 0


@pytest.mark.parametrize(
    ("gradients", "errors"),
    [
        ({"a": [1.0, -3.0]}, {"a": 1.0}),
        ({"a": [1.0, -3.0], "b": [2.5, math.nan]}, {"b": math.nan, "a": 1.0}),
        ({"b": [math.nan, 0.5]}, {"b": math.nan}),
        ({"c": [3.0]}, {"c": 3.0}),
    ],
)
def test_gradients_that_differ_are_named(gradients, errors):
    found = difference_of(changed(**gradients), changed(), MODEL)
    assert found.in_gradients_alone
    assert not found.equal
    assert found.errors.keys() == errors.keys()
    assert all(found.errors[name] == error or math.isnan(error) for name, error in errors.items())


def test_the_error_is_relative_to_the_largest_gradient_and_the_largest_comes_first():
    stored = Pass(1.0, {"a": torch.tensor([8.0]), "b": torch.tensor([1.0]), "c": torch.zeros(0)})
    rebuilt = Pass(1.0, {"a": torch.tensor([8.5]), "b": torch.tensor([3.0]), "c": torch.zeros(0)})
    found = difference_of(rebuilt, stored, MODEL)
    assert list(found.errors.items()) == [("b", 2.0), ("a", 0.5)]
    assert found.relative_error == 2 / 8
    nothing = Pass(1.0, {"a": torch.zeros(1), "b": torch.zeros(1), "c": torch.zeros(0)})
    assert difference_of(rebuilt, nothing, MODEL).relative_error == math.inf


def test_another_loss_is_no_difference_of_gradients_alone():
    found = difference_of(Pass(1.0, GRADIENTS), Pass(1.5, GRADIENTS), MODEL)
    assert not found.equal
    assert not found.in_gradients_alone
    assert not found.errors


def test_what_differs_in_any_process_differs(monkeypatch):
    other = Difference(False, {"a": 5.0, "b": 0.25}, 100.0)
    monkeypatch.setattr(gradient_difference, "gathered", lambda own, model: [own, other])
    stored, rebuilt = (Pass(1.0, {"a": torch.tensor([value]), "c": torch.ones(1)}) for value in (4.0, 3.5))
    assert difference_of(rebuilt, stored, MODEL) == Difference(False, {"a": 5.0, "b": 0.25}, 100.0)
    monkeypatch.setattr(gradient_difference, "gathered", lambda own, model: [own, Difference(True, {}, 1.0)])
    assert difference_of(rebuilt, stored, MODEL) == Difference(True, {"a": 0.5}, 4.0)
