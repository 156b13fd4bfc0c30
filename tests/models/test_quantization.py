import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import revformers as rf
from revformers.models.quantization import quantization_options
from tests.test_reversible import llama

BATCH = {"input_ids": torch.arange(20).view(2, 10)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    llama(layers=4).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dynamics", [rf.Midpoint(), rf.BlendedMidpoint(0.25)], ids=["midpoint", "blended"])
def test_an_adapter_on_nf4_weights_has_exact_gradients_without_cuda(saved, dtype, dynamics):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = AutoModelForCausalLM.from_pretrained(saved, dtype=dtype, **quantization_options("nf4", dtype))
    projection = model.model.layers[0].mlp.down_proj
    assert isinstance(projection, bitsandbytes.nn.Linear4bit)
    assert projection.weight.element_size() * projection.weight.numel() == projection.in_features * 32 // 2
    adapter = get_peft_model(
        rf.make_reversible(model, dynamics), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    ).train()
    assert rf.verify_gradients(adapter, BATCH).bit_exact


@pytest.mark.parametrize("evaluated", ["before", "after", "by a conversion"])
def test_gradients_are_those_of_the_unpacked_weights_also_after_an_evaluation(tmp_path, evaluated):
    """The reference has ordinary layers of PyTorch with the dequantised weights in them."""
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.functional import dequantize_4bit

    # as wide as a block of nf4: bitsandbytes' packed form takes no narrower layers
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    options = quantization_options("nf4", torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **options).eval()
    if evaluated == "before":
        with torch.no_grad():
            model(**BATCH)
    if evaluated == "by a conversion":
        rf.convert(model, 1, BATCH)
    else:
        rf.make_reversible(model, rf.Midpoint())
    with torch.no_grad():
        model(**BATCH)
    unpacked = copy.deepcopy(rf.make_residual(model))
    for name, module in list(unpacked.named_modules()):
        if type(module).__name__ == "Linear4bit":
            plain = nn.Linear(module.in_features, module.out_features, bias=False)
            plain.weight.data = dequantize_4bit(module.weight.data, module.weight.quant_state)
            unpacked.set_submodule(name, plain.to(torch.float32))
    gradients = []
    for network in (model, unpacked):
        rf.make_reversible(network.requires_grad_(False), rf.Midpoint())
        network.model.embed_tokens.requires_grad_(True)
        network.train()(**BATCH, labels=BATCH["input_ids"]).loss.backward()
        gradients.append(network.model.embed_tokens.weight.grad)
    assert gradients[1].abs().max() > 1e-3
    assert torch.allclose(*gradients, atol=1e-6)


def test_what_cannot_be_quantised_is_refused():
    assert quantization_options("none", torch.float32) == {}
    with pytest.raises(ValueError, match="no quantization 'nf3'"):
        quantization_options("nf3", torch.float32)
