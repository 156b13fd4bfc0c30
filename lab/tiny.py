"""Tiny random models of any architecture of transformers, for the survey of families and for tests.

The fields come from the configuration class: every field that is a size gets a small value, and the configuration
derives the others (layer types, head sizes).
"""

import dataclasses
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lab.private_api import model_from_config

VOCABULARY = 128
LARGEST_MODEL = 20_000_000
"""Number of parameters above which a model is not tiny: a size in its configuration was missed."""

_SIZES: dict[int, str] = {
    VOCABULARY: (
        "vocab_size unpadded_vocab_size vocab_size_per_layer_input decoder_vocab_size pronunciation_vocab_size "
        "shape_vocab_size encoder_hash_byte_group_vocab ngram_vocab_size_base max_position_embeddings "
        "n_positions n_ctx max_seq_len context_length max_target_positions original_max_position_embeddings "
        "max_source_positions num_centroids"
    ),
    64: (
        "hidden_size d_model n_embd emb_dim embedding_size input_embedding_size output_embedding_size "
        "hidden_size_global lru_width dim_model_base mamba_d_ssm intermediate_size decoder_ffn_dim "
        "encoder_ffn_dim ffn_dim dff dim_ff d_inner feed_forward_size ffn_hidden_size expert_ffn_hidden_size "
        "intermediate_size_mlp dense_intermediate_size moe_intermediate_size "
        "moe_shared_expert_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size "
        "shared_intermediate_size prompt_mid_dim pronunciation_embed_dim shape_embed_dim"
    ),
    16: (
        "head_dim dim_head kv_channels swa_head_dim index_head_dim linear_head_dim v_head_dim "
        "linear_key_head_dim linear_value_head_dim qk_nope_head_dim attention_head_size rotary_dim "
        "mamba_head_dim hidden_size_per_layer_input kv_lora_rank q_lora_rank o_lora_rank laurel_rank hc_lowrank "
        "gated_norm_rank router_hidden_size adapter_rank query_pre_attn_scalar mamba_d_state state_size "
        "ssm_state_size chunk_size mamba_chunk_size block_size classifier_proj_size num_mel_bins rel_extent"
    ),
    8: (
        "qk_rope_head_dim mamba_n_heads mamba_num_heads sliding_window sliding_window_size window_size "
        "attention_window_size attention_chunk_size local_attention local_attention_window_len keep_window_size "
        "index_topk index_block_size local_attn_chunk_length lsh_attn_chunk_length"
    ),
    4: (
        "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers encoder_layers "
        "num_encoder_layers num_attention_heads n_head n_heads num_heads attention_heads "
        "decoder_attention_heads num_decoder_attention_heads swa_num_attention_heads index_n_heads "
        "linear_num_heads linear_num_value_heads linear_num_key_heads num_experts n_routed_experts "
        "num_local_experts moe_num_experts zero_expert_num encoder_attention_heads num_encoder_attention_heads "
        "prompt_length prompt_types centroid_intermediate_top_k"
    ),
    2: (
        "n_layers_per_attn_res_block rescale_every layer_group_size global_attn_every_n_layers "
        "no_rope_layer_interval sliding_window_pattern num_key_value_heads swa_num_key_value_heads "
        "num_experts_per_tok moe_k moe_topk n_group n_groups index_topk_blocks o_groups"
    ),
    1: "topk_group first_k_dense_replace",
}
SIZES = {name: size for size, names in _SIZES.items() for name in names.split()}
"""The value of every field with this name that has a default."""

TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "sep_token_id": 2}

OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"use_cache": False},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {
        "attn_config": {"clip_qkv": 8.0, "kv_n_heads": 2, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 64},
    },
    "deepseek_v2": {"topk_method": "greedy", "n_group": 1, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_text": {
        **{f"swa_{name}": 4 for name in ("num_attention_heads", "num_key_value_heads")},
        **{f"swa_{name}": 16 for name in ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim")},
        "swa_head_dim": 24,
    },
    "gemma3_text": {"sliding_window_pattern": 2},
    "gemma3n_text": {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "inkling_text": {"local_layer_ids": [0, 2]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 4},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "kolibri1": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm3": {"layer_types": ["conv", "full_attention", "sliding_attention", "conv"]},
    "longcat_flash": {"head_dim": 8},
    "mamba2": {"head_dim": 32},
    "moshi": {"audio_vocab_size": VOCABULARY},
    "musicgen_decoder": {"num_codebooks": 1},
    "musicgen_melody_decoder": {"num_codebooks": 1},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "reformer": {"axial_pos_shape": [4, 4], "axial_pos_embds_dim": [32, 32]},
    "xlstm": {"qk_dim_factor": 1.0, "mode": "train", "use_cache": False},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention"] * 2 + ["hybrid"] * 2},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}
"""Additional options of single architectures, by model type."""

DRAFTERS = {"gemma4_assistant", "gemma4_unified_assistant"}
"""Architectures that are not language models by themselves, by model type."""


def tiny_options(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """Return the options that make a configuration of this class tiny."""
    defaults = {field.name: field.default for field in dataclasses.fields(config_class)}
    options: dict[str, Any] = {
        name: value for name, value in (SIZES | TOKENS).items() if isinstance(defaults.get(name), int)
    }
    if "is_decoder" in defaults:
        options["is_decoder"] = True
    if "head_dim" in defaults:
        options["head_dim"] = 16
    if "residual_multiplier" in defaults:
        options["residual_multiplier"] = 0.5
    heads = defaults.get("num_attention_heads")
    if heads is not None and heads == defaults.get("num_key_value_heads"):
        options["num_key_value_heads"] = 4
    # transformers 5.17 has no such attribute, and builds the parts of composite models at their usual size.
    for name, part in getattr(config_class, "sub_configs_defaults", {}).items():
        if not part.optional:
            part_class = CONFIG_MAPPING[part.model_type] if part.config_class is AutoConfig else part.config_class
            options[name] = part.init_kwargs | {"model_type": part_class.model_type} | tiny_options(part_class)
    return options | OVERRIDES.get(config_class.model_type, {})


def tiny_model(model_class: type[PreTrainedModel], **options: Any) -> PreTrainedModel:
    """Return a tiny model of this class with random weights.

    Args:
        model_class: a causal language model of transformers.
        options: fields of its configuration to change.

    Raises:
        ValueError: if the model is not tiny after all; its parameters are counted before they are allocated.

    """
    if model_class.config_class.model_type in DRAFTERS:
        raise ValueError("a drafter; it reads the keys and values of the model that it drafts for")
    config = model_class.config_class(**(tiny_options(model_class.config_class) | options))
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in model_from_config(model_class, config).parameters())
    if size > LARGEST_MODEL:
        raise ValueError(f"A tiny {model_class.__name__} has {size:,} parameters; a size was missed.")
    return model_from_config(model_class, config)


def tiny_batch(model: PreTrainedModel, tokens: int = 16) -> dict[str, Any]:
    """Return a batch of two random sequences for a training step of a tiny model; labels are the input ids."""
    generator = torch.Generator().manual_seed(0)
    batch: dict[str, Any] = {"input_ids": torch.randint(10, 100, (2, tokens), generator=generator)}
    batch["labels"] = batch["input_ids"]
    if model.config.model_type == "git":
        vision = model.config.vision_config
        batch["pixel_values"] = torch.randn(2, 3, vision.image_size, vision.image_size, generator=generator)
    if model.config.model_type in ("musicgen_decoder", "musicgen_melody_decoder"):
        batch["labels"] = batch["labels"][..., None]
    return batch


@torch.no_grad()
def perturb_(model: PreTrainedModel, size: float = 0.05) -> PreTrainedModel:
    """Add random numbers of standard deviation `size` to every parameter, in place.

    Fresh norms are all ones and fresh biases zeros: without noise, a mix-up of two norms would go unnoticed.
    """
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=size)
    return model
