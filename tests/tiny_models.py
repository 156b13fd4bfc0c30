"""Tiny random models of the families that are tested in depth."""

import dataclasses

import torch
import transformers
from peft import LoraConfig, get_peft_model

from lab.tiny import tiny_batch, tiny_model

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "opt": "OPTForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "granite": "GraniteForCausalLM",
    "cohere": "CohereForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
}


def model_class(family):
    return getattr(transformers, FAMILIES.get(family, family))


def tiny(family, *, dropout=0.0, dtype=torch.float32, lora=False, **options):
    """A model of a family (or of a class of transformers, by name) in training mode; the same weights each time."""
    kind = model_class(family)
    for field in dataclasses.fields(kind.config_class):
        if field.name.endswith(("dropout", "pdrop")) and field.name != "classifier_dropout":
            options.setdefault(field.name, dropout)
    if "init_std" in {field.name for field in dataclasses.fields(kind.config_class)} and "initializer_range" in options:
        options["init_std"] = options.pop("initializer_range")
    torch.manual_seed(0)
    model = tiny_model(kind, **options).to(dtype)
    if lora:
        # Embeddings, norms and head stay frozen, so the first layer's input needs no gradient.
        kind = {"fan_in_fan_out": True} if family == "gpt2" else {}
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, **kind))
    return model.train()


def batch(model):
    """A batch on the device of the model, the same each time."""
    inputs = tiny_batch(model.get_base_model() if hasattr(model, "get_base_model") else model)
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}
