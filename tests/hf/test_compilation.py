import shutil

import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.testing import CompileCounterWithBackend

import revformers as rf
from tests.hf.test_budget import check, each_recompute, equal, step
from tests.tiny_models import batch, tiny

LAYERS = 12
"""More than the eight recompilations after which PyTorch runs a function uncompiled."""


@pytest.fixture(autouse=True)
def _no_compiled_code():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("family", "dynamics", "graphs"),
    [
        ("llama", rf.Midpoint(), 1),
        ("llama", rf.BlendedMidpoint("1/4"), 1),
        ("gpt2", rf.Hamiltonian(), 2),
        ("gemma3", rf.Midpoint(), 2),
        ("OlmoForCausalLM", rf.Leapfrog(), 1),
    ],
)
def test_compiled_layers_are_rebuilt_to_the_bit(family, dynamics, graphs):
    model = tiny(family, num_hidden_layers=LAYERS, dropout=0.1)
    counter = CompileCounterWithBackend("aot_eager")
    assert rf.compile_layers(rf.make_reversible(model, dynamics), backend=counter) is model
    report = rf.verify_gradients(model, batch(model))
    assert report.bit_exact
    assert counter.frame_count == graphs, "layers of one kind share a graph, in both passes"


within_budgets = pytest.mark.parametrize(
    ("family", "dynamics"), [("llama", rf.BlendedMidpoint("1/4")), ("gpt2", rf.Hamiltonian())]
)


@within_budgets
@each_recompute
def test_every_budget_runs_the_graphs_of_storing(family, dynamics, recompute):
    model = rf.make_reversible(tiny(family, num_hidden_layers=6), dynamics)
    counter = CompileCounterWithBackend("aot_eager")
    rf.compile_layers(model, backend=counter)
    step(model, "store")
    graphs = counter.frame_count
    reports = check(model, recompute)
    assert any(report.attention_kept for report in reports)
    assert counter.frame_count == graphs


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@within_budgets
@each_recompute
def test_every_budget_gives_the_gradients_of_kernels_that_round_in_their_own_way(family, dynamics, recompute):
    model = rf.make_reversible(tiny(family, num_hidden_layers=6), dynamics)
    eager = step(model, "store")
    rf.compile_layers(model, backend="inductor")
    reports = check(model, recompute)
    assert any(report.attention_kept for report in reports)
    assert not equal(step(model, "store"), eager), "a layer that ran uncompiled would go unnoticed"


def test_the_recurrence_itself_is_never_compiled():
    model = rf.make_reversible(tiny("llama", num_hidden_layers=LAYERS), rf.Midpoint())
    for layer in model.model.layers:
        layer.compile(backend="aot_eager")
    assert rf.verify_gradients(model, batch(model)).bit_exact


def test_more_kinds_of_layers_than_the_limit_are_refused():
    model = rf.compile_layers(
        rf.make_reversible(tiny("gemma3", num_hidden_layers=LAYERS), rf.Midpoint()), backend="eager"
    )
    with torch._dynamo.config.patch(recompile_limit=1), pytest.raises(FailOnRecompileLimitHit):
        model(**batch(model))


def test_every_model_has_a_limit_of_its_own():
    with torch._dynamo.config.patch(recompile_limit=1):
        for family in ("llama", "gpt2", "OlmoForCausalLM"):
            model = rf.compile_layers(rf.make_reversible(tiny(family), rf.Midpoint()), backend="eager")
            model(**batch(model))


def test_only_a_reversible_model_is_compiled():
    with pytest.raises(ValueError, match="ordinary network"):
        rf.compile_layers(tiny("llama"))
