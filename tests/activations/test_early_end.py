import functools
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import revformers as rf
from revformers.activations import early_end, rebuild
from revformers.activations.early_end import may_end_early
from revformers.hf.mlp_tiles import set_mlp_tiles
from tests.tiny_models import batch, tiny


def fields_of(model):
    """The fields of every layer, in the forms in which the tape has them."""
    seen = []
    evaluate = rebuild.Tape.evaluate

    def noting(tape, name, coefficients, field, hidden, **options):
        seen.append(field)
        return evaluate(tape, name, coefficients, field, hidden, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rebuild.Tape, "evaluate", noting)
        model(**batch(model))
    assert seen
    return seen


def reversible(policy="checkpoint"):
    return rf.make_reversible(tiny("llama"), rf.Midpoint(), policy)


@pytest.mark.parametrize("policy", ["checkpoint", "rebuild", rf.Budget("100MiB")])
def test_layers_of_transformers_may(policy):
    assert all(map(may_end_early, fields_of(reversible(policy))))


def test_adapters_tiles_predictors_and_compiled_layers_may():
    model = get_peft_model(reversible(), LoraConfig(target_modules=["q_proj", "down_proj"]))
    set_mlp_tiles(model, 4)
    assert all(map(may_end_early, fields_of(model)))


def test_hooks_other_forwards_and_other_modules_may_not():
    def refused(change):
        model = reversible()
        change(model.model.layers[1].mlp.down_proj)
        return [not may_end_early(field) for field in fields_of(model)]

    class Rounded(nn.Linear):
        def forward(self, hidden):
            return super().forward(hidden)

    def other_forward(part):
        part.forward = functools.update_wrapper(partial(type(part).forward, part), part.forward)

    of_layer_1 = [False, True, False, False]
    assert refused(lambda part: part.register_forward_hook(lambda *_: None)) == of_layer_1
    assert refused(other_forward) == of_layer_1
    assert refused(lambda part: setattr(part, "__class__", Rounded)) == of_layer_1
    assert refused(lambda part: part.register_forward_pre_hook(lambda *_: None)) == [False] * 4


def test_a_function_of_ones_own_may_not_whatever_it_wraps():
    def own(hidden):
        return hidden

    assert not may_end_early(own)
    assert not may_end_early(partial(own))
    assert not may_end_early(functools.wraps(torch.nn.functional.silu)(own))
    assert may_end_early(torch.nn.functional.silu)


def test_a_hook_of_all_modules_counts():
    linear = nn.Linear(2, 2)
    assert may_end_early(linear)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert not may_end_early(linear)
    finally:
        handle.remove()


def test_what_may_end_early_does(monkeypatch):
    """The product that a checkpointed layer ends with is not computed again; it is where the layer is not known."""

    def products():
        finished, linear = [], nn.functional.linear

        def noting(*inputs):
            finished.append(linear(*inputs))
            return finished[-1]

        model = reversible()
        loss = model(**batch(model)).loss
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nn.functional, "linear", noting)
            loss.backward()
        return len(finished)

    of_known = products()
    monkeypatch.setattr(early_end, "_KNOWN", frozenset())
    assert products() == of_known + 4
