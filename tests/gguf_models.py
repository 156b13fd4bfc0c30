"""Tiny models as GGUF files, written by the package of llama.cpp."""

import copy
import json

import gguf
import numpy
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from revformers.data.tokenizer import train_tokenizer

TEXT = "".join(f"line {number} of a text that is about nothing, twice {2 * number}\n" for number in range(400))
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tiny_llama():
    """A Llama whose layers change the stream a little, with sizes that blocks of 32 weights fit in."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def tiny_tokenizer():
    tokenizer = train_tokenizer([TEXT], 300)
    assert len(tokenizer) == 300
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def rounded(model, quantization="Q8_0"):
    """A copy of a model with the numbers that blocks of a type keep of its matrices."""
    kind = gguf.GGMLQuantizationType[quantization]
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.tensor(gguf.dequantize(gguf.quantize(parameter.numpy(), kind), kind)))
    return model


def write_gguf(path, model, tokenizer, quantization="Q8_0", pre="gpt-2", tensors=(), metadata=()):
    """Write a Llama as llama.cpp's own converter does.

    Args:
        path: the file to write.
        model: the Llama.
        tokenizer: a byte-level tokenizer.
        quantization: type of the matrices, or F32; vectors are float32.
        pre: how the file says that text is split.
        tensors: further tensors as pairs of name and array.
        metadata: further texts as pairs of key and text.

    """
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    control = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token in control else 1 for token, _ in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in _merges(tokenizer)])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    for key, text in metadata:
        writer.add_string(key, text)
    for name, tensor in _tensors(model):
        kind = gguf.GGMLQuantizationType[quantization if tensor.ndim == 2 else "F32"]
        writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
    for name, tensor in tensors:
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _merges(tokenizer):
    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]


def _tensors(model):
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        tensor = weight.float().numpy()
        if name.startswith("model.layers."):
            _, _, layer, *parts, kind = name.split(".")
            if parts[-1] in heads:  # llama.cpp rotates neighbouring elements, transformers the two halves
                tensor = _interleaved(tensor, heads[parts[-1]])
            yield f"blk.{layer}.{NAMES['.'.join(parts)]}.{kind}", numpy.ascontiguousarray(tensor)
        else:
            other = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
            part, _, kind = name.rpartition(".")
            yield f"{other[part]}.{kind}", tensor


def _interleaved(tensor, heads):
    rows, columns = tensor.shape
    return tensor.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
