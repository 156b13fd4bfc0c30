"""What training adds: compiled layers, adapters on quantised weights, tiles, chunks, several passes, streams."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

import revformers as rf
from revformers.models.quantization import quantization_options
from tests.devices.passes import POLICIES, assert_close, assert_exact, different, each_device, network, on_gpu, step
from tests.tiny_models import batch
from tests.training.test_step_in_backward import assert_same_training

IN_TURN = ("rebuild", "checkpoint", "budget:rebuild")


def adapted(model, dropout=0.1):
    torch.manual_seed(2)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, lora_dropout=dropout)
    return get_peft_model(model, config).train()


# Compiled layers


@pytest.fixture
def compiler():
    """PyTorch's compiler, without code of other tests."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


COMPILED = {
    "float32": ({}, None),
    "bfloat16": ({"dtype": torch.bfloat16}, None),
    "autocast": ({}, torch.bfloat16),
    "dropout": ({"dtype": torch.bfloat16, "dropout": 0.1}, None),
}


@each_device(pytest.mark.slow)
@pytest.mark.parametrize("kind", COMPILED)
def test_layers_compiled_by_inductor(deterministic, compiler, device, kind):
    options, autocast = COMPILED[kind]
    model = rf.compile_layers(network(device, **options))
    assert_exact(model, IN_TURN, autocast=autocast)


@each_device(pytest.mark.slow)
@pytest.mark.parametrize("kind", ["bfloat16", "padding", "adapters"])
def test_compiled_layers_with_ordinary_kernels(compiler, device, kind):
    """Their attention saves memory that no kernel wrote, of which the graph of a compiled layer does not tell."""
    model = network(device, dtype=torch.bfloat16)
    inputs = batch(model)
    if kind == "padding":
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["attention_mask"][0, :3] = 0
    if kind == "adapters":
        model = adapted(model)
    assert_close(rf.compile_layers(model), 2e-2, IN_TURN, inputs=inputs)


# Adapters


@each_device(pytest.mark.thorough)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_adapters(deterministic, device, dtype):
    assert_exact(adapted(network(device, dtype=dtype)))


@each_device(pytest.mark.thorough)
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_adapters_on_quantised_weights(deterministic, tmp_path, device, quantization):
    pytest.importorskip({"nf4": "bitsandbytes", "int8": "torchao"}[quantization])
    network("cpu").save_pretrained(tmp_path)
    options = quantization_options(quantization, torch.bfloat16)
    model = rf.from_pretrained(tmp_path, dtype=torch.bfloat16, device_map={"": device}, **options)
    kinds = {type(part).__name__ for part in model.modules()} | {type(one).__name__ for one in model.parameters()}
    assert kinds & {"Linear4bit", "Int8Tensor", "AffineQuantizedTensor", "LinearActivationQuantizedTensor"}
    assert next(model.parameters()).device.type == device
    assert_exact(adapted(model), IN_TURN)


# Tiles and chunks


@each_device(pytest.mark.thorough)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_mlps_in_tiles(deterministic, device, dtype):
    model = network(device, dtype=dtype)
    rf.set_mlp_tiles(model, 5)
    assert_exact(model)


@each_device(pytest.mark.thorough)
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_the_loss_in_chunks(deterministic, device, autocast):
    model = network(device)
    expected, _ = step(model, "store", autocast=autocast)
    rf.set_head_loss(model, rf.HeadLoss(chunk=7))
    assert step(model, "store", autocast=autocast)[0] == pytest.approx(expected.item(), rel=1e-3)
    assert_exact(model, autocast=autocast)


# Steps and passes


@each_device(pytest.mark.thorough)
@pytest.mark.parametrize("activations", ["store", "checkpoint", "rebuild"])
def test_steps_in_the_backward_pass_end_with_the_same_weights(deterministic, device, activations):
    assert_same_training(network(device, activations=activations, dropout=0.1))


@each_device(pytest.mark.thorough)
def test_three_steps_end_with_the_weights_of_stored_activations(deterministic, device):
    def trained(policy):
        model = network(device, dtype=torch.bfloat16, dropout=0.1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(3):
            for name, gradient in step(model, policy)[1].items():
                model.get_parameter(name).grad = gradient
            optimizer.step()
        return model.state_dict()

    stored, before = trained("store"), network(device, dtype=torch.bfloat16).state_dict()
    assert not all(torch.equal(weight, before[name]) for name, weight in stored.items())
    for policy in POLICIES:
        weights = trained(policy)
        assert all(torch.equal(weight, stored[name]) for name, weight in weights.items()), policy


def accumulated(model):
    """Gradients of two batches of different lengths in flight, the last one first."""
    ids = batch(model)["input_ids"]
    losses = [model(input_ids=part, labels=part).loss for part in (ids, ids[:, :11])]
    for loss in reversed(losses):
        loss.backward()
    return gradients_of(model)


def retained(model):
    loss = model(**batch(model)).loss
    loss.backward(retain_graph=True)
    loss.backward()
    return gradients_of(model)


def in_parts(model):
    """The gradients of every layer, one call for each."""
    loss = model(**batch(model)).loss
    return [
        gradient
        for layer in model.model.layers
        for gradient in torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)
    ]


def gradients_of(model):
    gradients = [weight.grad for weight in model.parameters()]
    model.zero_grad()
    return gradients


@each_device(pytest.mark.thorough)
@pytest.mark.parametrize("way", [accumulated, retained, in_parts], ids=lambda way: way.__name__)
@pytest.mark.parametrize("policy", ["rebuild", "checkpoint", "offload"])
def test_several_passes(deterministic, device, policy, way):
    model = network(device, dropout=0.1)
    found = []
    for activations in ("store", policy):
        rf.set_activations(model, activations)
        torch.manual_seed(1)
        found.append(way(model))
    assert all(map(torch.equal, *found))
    assert any(gradient.any() for gradient in found[0])


# Streams


def on_streams(forward, backward):
    """Run the forward pass on one stream, which other work keeps busy, and the backward pass on another."""

    def run(model, policy):
        torch.cuda.synchronize()
        busy = torch.randn(4096, 4096, device=model.device)
        forward.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(forward):
            for _ in range(10):
                busy @ busy
            rf.set_activations(model, policy)
            torch.manual_seed(1)
            loss = model(**batch(model)).loss
        backward.wait_stream(forward)
        with torch.cuda.stream(backward):
            loss.backward()
        torch.cuda.current_stream().wait_stream(backward)
        loss.record_stream(backward)
        gradients = {name: weight.grad for name, weight in model.named_parameters()}
        model.zero_grad()
        torch.cuda.synchronize()
        return loss.detach(), gradients

    return run


@on_gpu
@pytest.mark.parametrize("policy", ["rebuild", "checkpoint", "offload"])
def test_a_backward_pass_on_another_stream(deterministic, device, policy):
    model = network(device, dropout=0.1)
    expected = step(model, "store")
    run = on_streams(torch.cuda.Stream(), torch.cuda.Stream())
    for _ in range(3):
        assert not different(run(model, policy), expected)


@on_gpu
@pytest.mark.parametrize("policy", ["rebuild", "offload"])
def test_two_models_on_two_streams(deterministic, device, policy):
    models = [network(device, dropout=0.1), network(device, rf.Hamiltonian(), dropout=0.1)]
    expected = [step(model, "store") for model in models]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    for model in models:
        rf.set_activations(model, policy)
    torch.cuda.synchronize()
    losses = []
    for model, stream in zip(models, streams, strict=True):
        with torch.cuda.stream(stream):
            torch.manual_seed(1)
            losses.append(model(**batch(model)).loss)
    for loss, stream in zip(losses, streams, strict=True):
        with torch.cuda.stream(stream):
            loss.backward()
    torch.cuda.synchronize()
    for model, loss, stored in zip(models, losses, expected, strict=True):
        gradients = {name: weight.grad for name, weight in model.named_parameters()}
        assert not different((loss.detach(), gradients), stored)


@each_device(pytest.mark.thorough)
def test_a_copy_of_a_model_trains_alike(deterministic, device):
    model = network(device, dropout=0.1)
    step(model, "rebuild")
    assert not different(step(copy.deepcopy(model), "rebuild"), step(model, "store"))
