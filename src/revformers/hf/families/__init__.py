"""Branch-level fields of model families: a new family is one line here, or one file where its layer is special.

A layer that is not in the table still has its block-level field, layer(x) - x; it only lacks steps by branch.
"""

from torch import nn

from revformers.hf.families.layout import BlockLayout, Branch
from revformers.hf.families.opt import OptLayout

_PRE_NORM = BlockLayout(Branch("self_attn", before="input_layernorm"), Branch("mlp", before="post_attention_layernorm"))
_SANDWICH_NORM = BlockLayout(
    Branch("self_attn", before="input_layernorm", after=("post_attention_layernorm",)),
    Branch("mlp", before="pre_feedforward_layernorm", after=("post_feedforward_layernorm",)),
)
_POST_NORM = BlockLayout(
    Branch("self_attn", after=("post_attention_layernorm",)), Branch("mlp", after=("post_feedforward_layernorm",))
)
_SCALED_PRE_NORM = BlockLayout(
    Branch("self_attn", before="input_layernorm", scale="residual_multiplier"),
    Branch("mlp", before="post_attention_layernorm", scale="residual_multiplier"),
)
_PARALLEL_ONE_NORM = BlockLayout(
    Branch("self_attn", before="input_layernorm"), Branch("mlp", before="input_layernorm"), parallel=True
)

LAYOUTS: dict[str, BlockLayout | OptLayout] = {
    "LlamaDecoderLayer": _PRE_NORM,
    "MistralDecoderLayer": _PRE_NORM,
    "MinistralDecoderLayer": _PRE_NORM,
    "Qwen2DecoderLayer": _PRE_NORM,
    "Qwen3DecoderLayer": _PRE_NORM,
    "SmolLM3DecoderLayer": _PRE_NORM,
    "MixtralDecoderLayer": _PRE_NORM,
    "Qwen3MoeDecoderLayer": _PRE_NORM,
    "GptOssDecoderLayer": _PRE_NORM,
    "Phi3DecoderLayer": BlockLayout(
        Branch("self_attn", before="input_layernorm", after=("resid_attn_dropout",)),
        Branch("mlp", before="post_attention_layernorm", after=("resid_mlp_dropout",)),
    ),
    "GPT2Block": BlockLayout(
        Branch("attn", before="ln_1"), Branch("mlp", before="ln_2"), unless="encoder_hidden_states"
    ),
    "GPTNeoXLayer": BlockLayout(
        Branch("attention", before="input_layernorm", after=("post_attention_dropout",)),
        Branch("mlp", before="post_attention_layernorm", after=("post_mlp_dropout",)),
        parallel="use_parallel_residual",
    ),
    "OPTDecoderLayer": OptLayout(),
    "Gemma2DecoderLayer": _SANDWICH_NORM,
    "Gemma3DecoderLayer": _SANDWICH_NORM,
    "Olmo2DecoderLayer": _POST_NORM,
    "GraniteDecoderLayer": _SCALED_PRE_NORM,
    "CohereDecoderLayer": _PARALLEL_ONE_NORM,
}
"""Layouts by the class name of the layer in transformers."""


def find_layout(layer: nn.Module) -> BlockLayout | OptLayout | None:
    """Return the layout of a transformers layer, or None where its branches are not known.

    FSDP makes subclasses of layers, so the class that counts is the first of transformers' own; a class that
    transformers derives from a known one is not taken for its parent.
    """
    for kind in type(layer).__mro__:
        if kind.__module__.startswith("transformers.models."):
            if kind.__name__ == "OPTDecoderLayer" and not layer.do_layer_norm_before:
                return None
            return LAYOUTS.get(kind.__name__)
    return None
