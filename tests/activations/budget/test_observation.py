from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from revformers.activations.budget.allocation import StepCost
from revformers.activations.budget.observation import Observations, ObservedStep, PassKind, switches


def kind(*shape, **options):
    return PassKind.of(torch.zeros(*shape, 8, **options), 0)


def steps(stored):
    return (ObservedStep(StepCost(stored=stored), 0),)


def test_the_smallest_pass_that_is_as_large_in_every_dimension_is_found():
    observations = Observations()
    for shape in ((4, 16), (2, 64), (8, 64)):
        observations.add(kind(*shape), steps(shape[0] * shape[1]))
    for shape, expected in {(4, 16): 64, (1, 1): 64, (2, 17): 128, (3, 17): 512}.items():
        assert observations.find(kind(*shape)) == steps(expected)
    assert observations.find(kind(9, 1)) is None
    assert observations.find(PassKind.of(torch.zeros(1, 1, 9), 0)) is None
    observations.forget()
    assert observations.find(kind(1, 1)) is None


@pytest.mark.parametrize(
    "options",
    [{"dtype": torch.bfloat16}, {"requires_grad": True}, {"device": "meta"}],
    ids=str,
)
def test_a_pass_of_another_kind_is_another(options):
    observations = Observations()
    observations.add(kind(2, 4), steps(1))
    assert observations.find(kind(2, 4, **options)) is None
    observations.add(kind(2, 4, **options), steps(2))
    assert observations.find(kind(2, 4, **options)) == steps(2)
    assert observations.find(kind(2, 4)) == steps(1)


def test_so_is_one_under_autocast():
    observations = Observations()
    observations.add(kind(2, 4), steps(1))
    with torch.autocast("cpu", torch.bfloat16):
        assert observations.find(kind(2, 4)) is None


def test_so_is_one_with_other_attention_kernels():
    observations = Observations()
    observations.add(kind(2, 4), steps(1))
    with sdpa_kernel(SDPBackend.MATH):
        assert observations.find(kind(2, 4)) is None
    assert observations.find(kind(2, 4)) == steps(1)


def test_a_mask_is_a_switch_and_its_values_are_none():
    layer = nn.Linear(4, 4)
    without, masked, other, boolean = (
        switches(partial(layer, mask=mask))
        for mask in (None, torch.zeros(2, 3), torch.ones(4, 5), torch.ones(2, 3, dtype=torch.bool))
    )
    assert masked == other
    assert len({without, masked, boolean}) == 3


def test_a_float_is_a_switch_only_where_it_becomes_zero():
    layer = nn.Dropout(0.5)
    before = switches(layer)
    layer.p = 0.25
    assert switches(layer) == before
    layer.p = 0.0
    assert switches(layer) != before


def test_switches_are_settings_and_which_weights_train_but_neither_values_nor_counts():
    layer = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0))
    layer[0].config = SimpleNamespace(_attn_implementation="sdpa")
    before = switches(layer)
    with torch.no_grad():
        layer[0].weight.add_(1)
    layer[0].calls = 3
    assert switches(layer) == before
    seen = {before}
    for change in (
        layer.eval,
        lambda: layer[0].bias.requires_grad_(False),
        lambda: setattr(layer[1], "inplace", True),
        lambda: setattr(layer[1], "p", 0.5),
        lambda: setattr(layer[0].config, "_attn_implementation", "eager"),
        lambda: setattr(layer[0], "forward", layer[0].forward),
    ):
        change()
        seen.add(switches(layer))
    assert len(seen) == 7
