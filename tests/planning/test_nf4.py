import pytest
import torch
from torch import nn
from transformers import AutoConfig

from lab.bench.workload import llama_config
from revformers.planning.model_size import meta_model, model_size, trained_model
from revformers.planning.nf4 import Nf4Linear, quantise_linear_layers
from revformers.setup import Workload

CONFIG = llama_config(3, 128, 256, 256)
ORDINARY = AutoConfig.for_model(**CONFIG)


def test_nf4_takes_half_a_byte_and_scales():
    size = model_size(trained_model(Workload(ORDINARY, precision="bfloat16", training="qlora"), 3), "adamw")
    ordinary = model_size(trained_model(Workload(ORDINARY, precision="bfloat16", training="lora"), 3), "adamw")
    assert (size.parameters, size.trained) == (ordinary.parameters, ordinary.trained)
    layers = sum(module.weight.numel() for _, module in linear_layers(meta_model(ORDINARY, 3, torch.bfloat16)))
    # A scale of a byte for 64 elements, one of four for 64 x 256, and the code books of every weight.
    expected = layers * (0.5 + 1 / 64 + 4 / 2**14) + 21 * 1092
    assert ordinary.weights - size.weights == pytest.approx(2 * layers - expected, rel=1e-4)


def test_the_head_the_embedding_and_the_norms_are_not_quantised():
    model = meta_model(ORDINARY, 3, torch.bfloat16)
    quantise_linear_layers(model)
    assert sum(isinstance(module, Nf4Linear) for module in model.modules()) == 21
    kept = [model.lm_head.weight, model.model.embed_tokens.weight, model.model.norm.weight]
    assert all(weight.dtype == torch.bfloat16 for weight in kept)


def test_an_nf4_layer_computes_shapes_and_gradients_and_keeps_no_weight():
    layer = Nf4Linear(nn.Linear(64, 32, device="meta", dtype=torch.bfloat16))
    hidden = torch.empty(2, 5, 64, dtype=torch.bfloat16, device="meta", requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        result = layer(hidden)
    assert (result.shape, result.dtype) == ((2, 5, 32), torch.bfloat16)
    result.sum().backward()
    assert hidden.grad.shape == hidden.shape
    assert [tensor.dtype for tensor in saved] == [torch.uint8]


def linear_layers(model):
    return [
        (name, module) for name, module in model.named_modules() if type(module) is nn.Linear and "head" not in name
    ]
