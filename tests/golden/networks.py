"""Ten tiny networks of different families, the recurrences and the activation policies that golden tests run them with.

Only public names of revformers are used, and they are used here alone: when the way to name a policy changes, this file
changes and the golden numbers stay.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import nn

import revformers as rf

VOCABULARY = 64
LAYERS = 4
TOKENS = 8

DYNAMICS = {
    "residual": lambda: rf.Residual(),
    "midpoint": lambda: rf.Midpoint(),
    "midpoint-mean": lambda: rf.Midpoint(readout="mean"),
    "midpoint-branch-zero": lambda: rf.Midpoint(step_size=0.375, granularity="branch", start="zero"),
    "leapfrog": lambda: rf.Leapfrog(step_size=0.5),
    "blended-quarter": lambda: rf.BlendedMidpoint("1/4"),
    "hamiltonian": lambda: rf.Hamiltonian(),
    "two-evaluation": lambda: rf.TwoEvaluationMidpoint("1/4"),
}


def policies(room: int) -> dict[str, Any]:
    """Return every activation policy by the name that the golden files have for it.

    Args:
        room: bytes of the budgets, which shall store some of the layers and not all.

    """
    return {
        "store": "store",
        "checkpoint": "checkpoint",
        "offload": "offload",
        "rebuild": "rebuild",
        "budget": rf.Budget(room),
        "checkpoint-budget": rf.Budget(room, recompute="checkpoint"),
    }


@dataclass(frozen=True)
class Network:
    """A tiny network.

    Attributes:
        model: its class in transformers.
        config: fields of its configuration.
        batch: "whole" sequences, "padded" ones of different lengths, or "packed" ones, told by their positions.
        runs: the recurrences that it is run with, by the type of its numbers.
        room: bytes of a budget in float32; half as many in bfloat16.

    """

    model: str
    config: dict[str, Any] = field(default_factory=dict)
    batch: str = "whole"
    runs: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"float32": tuple(DYNAMICS)})
    room: int = 96 * 1024


_WIDE = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
_GATED = _WIDE | {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
_TWO_TYPES = {"float32": tuple(DYNAMICS), "bfloat16": ("midpoint-mean", "blended-quarter", "hamiltonian")}

NETWORKS = {
    "llama": Network("LlamaForCausalLM", _GATED, batch="packed", runs=_TWO_TYPES),
    "qwen3": Network("Qwen3ForCausalLM", _GATED, batch="padded"),
    "gemma2": Network(
        "Gemma2ForCausalLM",
        _GATED | {"sliding_window": 4, "query_pre_attn_scalar": 8, "attn_implementation": "eager"},
    ),
    "gpt2": Network(
        "GPT2LMHeadModel",
        {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 32}
        | {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
        batch="padded",
        runs=_TWO_TYPES,
        room=128 * 1024,
    ),
    "gpt_neox": Network(
        "GPTNeoXForCausalLM", _WIDE | {"intermediate_size": 64, "hidden_dropout": 0.1, "attention_dropout": 0.1}
    ),
    "opt": Network(
        "OPTForCausalLM",
        {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "ffn_dim": 64}
        | {"word_embed_proj_dim": 32, "max_position_embeddings": 32, "dropout": 0.0, "attention_dropout": 0.0},
        batch="padded",
        room=48 * 1024,
    ),
    "olmo2": Network("Olmo2ForCausalLM", {k: v for k, v in _GATED.items() if k != "head_dim"}),
    "granite": Network(
        "GraniteForCausalLM",
        {k: v for k, v in _GATED.items() if k != "head_dim"} | {"residual_multiplier": 0.5, "attention_dropout": 0.1},
    ),
    "cohere": Network("CohereForCausalLM", {k: v for k, v in _GATED.items() if k != "head_dim"}, batch="packed"),
    "mixtral": Network(
        "MixtralForCausalLM", _GATED | {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}
    ),
}


def build(network: Network, dtype: str) -> nn.Module:
    """Return the network with the same random weights each time, in training mode."""
    model_class = getattr(transformers, network.model)
    config = model_class.config_class(
        vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2, **network.config
    )
    torch.manual_seed(0)
    model = model_class._from_config(config)
    with torch.no_grad():
        # Fresh norms are ones and fresh biases zeros: two that are mixed up would go unnoticed.
        for _, parameter in sorted(model.named_parameters()):
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.to(getattr(torch, dtype)).train()


def batch(network: Network) -> dict[str, torch.Tensor]:
    """Return two sequences to train the network on."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (2, TOKENS), generator=generator)
    if network.batch == "padded":
        mask = torch.ones_like(ids)
        mask[0, :3] = 0  # on the left
        mask[1, -2:] = 0  # on the right
        ids = ids * mask
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    if network.batch == "packed":
        positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 0, 1, 2]])
        return {"input_ids": ids, "position_ids": positions, "labels": ids}
    return {"input_ids": ids, "labels": ids}
