import shutil
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._dynamo.exc import FailOnRecompileLimitHit, Unsupported
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import Trainer, TrainingArguments

import revformers as rf
from revformers.models.tiles import set_mlp_tiles
from tests.models.test_budget import check, each_recompute, equal, step
from tests.tiny_models import batch, tiny

LAYERS = 12
"""More than the eight recompilations after which PyTorch runs a function uncompiled."""


@pytest.fixture(autouse=True)
def _no_compiled_code():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
@each_recompute
def test_a_budget_and_compiled_layers_that_draw_random_numbers(recompute):
    model = rf.make_reversible(tiny("llama", num_hidden_layers=4), rf.Midpoint())
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["up_proj"], lora_dropout=0.1)).train()
    set_mlp_tiles(model, 5)  # checkpointing inside of a graph draws them by an operation of its own
    rf.compile_layers(model, backend="aot_eager")
    check(model, recompute)


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


def silent(function, *arguments, **keywords):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "torch.compile")
        return function(*arguments, **keywords)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "compiled",
    [torch.compile, lambda model, backend: model.compile(backend=backend) or model],
    ids=["torch.compile", "model.compile"],
)
def test_compiling_the_whole_model_says_once_that_layers_stay_as_they_are(compiled):
    model = rf.make_reversible(tiny("llama"), rf.Midpoint())
    inputs = batch(model)
    counter = CompileCounterWithBackend("aot_eager")
    whole = compiled(model, backend=counter)
    with pytest.warns(UserWarning, match="but not the layers; revformers.compile_layers") as caught:
        whole(**inputs)
    assert sum("but not the layers" in str(warning.message) for warning in caught) == 1
    outside = counter.frame_count
    assert outside > 0, "embeddings and head are compiled"
    gradients = []
    for activations in ("store", "rebuild"):
        rf.set_activations(model, activations)
        model.zero_grad()
        silent(whole, **inputs).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert equal(*gradients)
    inner = CompileCounterWithBackend("aot_eager")
    rf.compile_layers(rf.make_reversible(model, rf.Midpoint()), backend=inner)
    silent(whole, **inputs).loss.backward()
    assert inner.frame_count == 1


@pytest.mark.thorough
def test_a_trainer_that_compiles_says_that_layers_stay_as_they_are(tmp_path):
    model = rf.make_reversible(tiny("llama"), rf.Midpoint())
    options = TrainingArguments(
        str(tmp_path), torch_compile=True, torch_compile_backend="aot_eager", max_steps=2, report_to=[], use_cpu=True
    )
    examples = [{"input_ids": row, "labels": row} for row in batch(model)["input_ids"]]
    with pytest.warns(UserWarning, match="but not the layers"):
        Trainer(model, options, train_dataset=examples).train()
    counter = CompileCounterWithBackend("aot_eager")
    model = rf.compile_layers(rf.make_reversible(tiny("llama"), rf.Midpoint()), backend=counter)
    silent(Trainer(model, options, train_dataset=examples).train)
    assert counter.frame_count == 1


@pytest.mark.thorough
def test_what_cannot_be_compiled_as_a_whole_says_why():
    model = rf.make_reversible(tiny("llama"), rf.Midpoint()).eval()
    inputs = batch(model)
    with torch.no_grad(), pytest.raises(Unsupported, match=r"call revformers.compile_layers\(model\)"):
        torch.compile(model, backend="eager", fullgraph=True)(**inputs)
    with pytest.raises(rf.NotReversibleError, match=r"torch.export cannot export LlamaModel"):
        torch.export.export(model, (), inputs | {"use_cache": False})
    with pytest.raises(rf.NotReversibleError, match=r"torch.jit.trace cannot export LlamaModel"):
        torch.jit.trace(model, (inputs["input_ids"],), strict=False)
    with rf.ordinary(model), torch.no_grad():
        torch.compile(model, backend="eager", fullgraph=True)(**inputs)
    torch.export.export(rf.make_residual(model), (), inputs | {"use_cache": False})


@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("last_first", [False, True])
def test_two_lengths_in_flight_run_their_own_graphs_in_both_passes(last_first):
    """PyTorch would evaluate the first length again by the graph that it made for the second."""

    def gradients(activations):
        torch.compiler.reset()
        model = rf.compile_layers(rf.make_reversible(tiny("llama", dropout=0.2), rf.Midpoint(), activations))
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(1)
        losses = []
        for tokens in (16, 24):
            ids = torch.randint(10, 100, (2, tokens), generator=generator)
            losses.append(model(input_ids=ids, labels=ids).loss)
        for loss in losses[::-1] if last_first else losses:
            loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    assert all(map(torch.equal, gradients("rebuild"), gradients("store")))


@pytest.mark.thorough
def test_generating_does_not_use_up_the_graphs_of_training():
    model = rf.compile_layers(rf.make_reversible(tiny("llama"), rf.Midpoint()), backend="eager")
    inputs = batch(model)
    with torch._dynamo.config.patch(recompile_limit=2):
        for prompt in (3, 5, 9):
            model.generate(inputs["input_ids"][:1, :prompt], max_new_tokens=4, use_cache=True)
        model(**inputs).loss.backward()
        model(input_ids=inputs["input_ids"][:, :7], labels=inputs["labels"][:, :7]).loss.backward()
