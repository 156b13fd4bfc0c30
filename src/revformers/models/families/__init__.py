"""Layouts of the layers of model families. Add a name or a line to these tables, or call `register_layout`.

A layer without a layout still has a block-level field, layer(x) - x, but cannot step by branch. The survey
(`lab.survey`) verifies every entry on a tiny model.
"""

import inspect
from dataclasses import replace
from functools import lru_cache
from typing import Any

from torch import nn

from revformers.models.families.layout import BlockLayout, Branch

_PRE_NORM = BlockLayout(Branch("self_attn", before="input_layernorm"), Branch("mlp", before="post_attention_layernorm"))
_LINEAR_ATTENTION = BlockLayout(
    Branch("linear_attn", before="input_layernorm"),
    Branch("mlp", before="post_attention_layernorm"),
)
_SANDWICH_NORM = BlockLayout(
    Branch("self_attn", before="input_layernorm", after=("post_attention_layernorm",)),
    Branch("mlp", before="pre_feedforward_layernorm", after=("post_feedforward_layernorm",)),
)
_POST_NORM = BlockLayout(
    Branch("self_attn", after=("post_attention_layernorm",)), Branch("mlp", after=("post_feedforward_layernorm",))
)
_PARALLEL_ONE_NORM = BlockLayout(
    Branch("self_attn", before="input_layernorm"), Branch("mlp", before="input_layernorm"), parallel=True
)
_GPT2 = BlockLayout(Branch("attn", before="ln_1"), Branch("mlp", before="ln_2"), unless="encoder_hidden_states")
_GPT_NEOX = BlockLayout(
    Branch("attention", before="input_layernorm", after=("post_attention_dropout",)),
    Branch("mlp", before="post_attention_layernorm", after=("post_mlp_dropout",)),
)


def _when(layout: BlockLayout, **when: object) -> BlockLayout:
    return replace(layout, when=when)


def _flat_mlp(*inner_dropout: str, **when: object) -> BlockLayout:
    return BlockLayout(
        Branch("self_attn", before="self_attn_layer_norm", after=("dropout",)),
        Branch("fc1", before="final_layer_norm", after=("activation_fn", *inner_dropout, "fc2", "dropout")),
        unless="encoder_hidden_states",
        when=when,
    )


def _granite(attention: str, mlp: str, beside: str | None = None, **when: object) -> BlockLayout:
    return BlockLayout(
        Branch(attention, before="input_layernorm", scale="residual_multiplier"),
        Branch(mlp, before="post_attention_layernorm", scale="residual_multiplier", beside=beside),
        when=when,
    )


def _lfm(mixer: str, is_attention_layer: bool, *, sandwich: bool = False) -> BlockLayout:
    return BlockLayout(
        Branch(mixer, before="operator_norm", after=("post_operator_norm",) if sandwich else ()),
        Branch("feed_forward", before="ffn_norm", after=("post_ffn_norm",) if sandwich else ()),
        when={"is_attention_layer": is_attention_layer},
    )


def _falcon(attention_norm: str, mlp_norm: str, **when: object) -> BlockLayout:
    return BlockLayout(
        Branch("self_attention", before=attention_norm),
        Branch("mlp", before=mlp_norm),
        parallel=True,
        values_returned=2,
        # Falcon applies dropout to the sum of its branches, which has no counterpart in steps by branch.
        when={"hidden_dropout": 0.0, **{f"config.{name}": value for name, value in when.items()}},
    )


_DECODER_LAYERS: list[tuple[str, tuple[BlockLayout, ...]]] = [
    (
        "AXK1 AXK2 AriaText Arcee BailingHybrid BitNet Cwm DeepseekV2 DeepseekV3 DeepseekV32 DiffLlama Dots1 "
        "Dots3NoteText Ernie4_5 Ernie4_5_Moe ExaoneMoe Flint Gemma Glm Glm4Moe Glm4MoeLite GptOss HYV3 Helium "
        "HunYuanDenseV1 HunYuanMoEV1 Jais2 KimiLinear Laguna Llama Mellum MiMoV2Flash MiniMaxM2 MiniMaxM3VL Ministral "
        "Ministral3 Mistral Mixtral NanoChat Nemotron Olmo Olmoe Phimoe Qwen2 Qwen2Moe Qwen3 Qwen3Moe SeedOss SmolLM3 "
        "SolarOpen Starcoder2 Youtu",
        (_PRE_NORM,),
    ),
    ("Gemma2 Gemma3", (_SANDWICH_NORM,)),
    ("Exaone4 FlexOlmo Olmo2 Olmo3 OlmoHybridAttention", (_POST_NORM,)),
    ("OlmoHybridLinearAttention", (_LINEAR_ATTENTION,)),
    ("Cohere Cohere2 Cohere2Moe CohereCompass", (_PARALLEL_ONE_NORM,)),
    ("BigBirdPegasus BioGpt Blenderbot MBart Musicgen Pegasus Whisper XGLM", (_flat_mlp("activation_dropout"),)),
    ("OPT", (_flat_mlp(do_layer_norm_before=True),)),
    ("Granite GraniteSWA", (_granite("self_attn", "mlp"),)),
    ("GraniteMoe", (_granite("self_attn", "block_sparse_moe"),)),
    ("GraniteMoeSWA GraniteMoeShared", (_granite("self_attn", "block_sparse_moe", "shared_mlp"),)),
    (
        "GraniteMoeHybrid",
        (
            _granite("self_attn", "block_sparse_moe", "shared_mlp", mamba=None, has_experts=True),
            _granite("self_attn", "shared_mlp", mamba=None, has_experts=False),
            _granite("mamba", "block_sparse_moe", "shared_mlp", self_attn=None, has_experts=True),
            _granite("mamba", "shared_mlp", self_attn=None, has_experts=False),
        ),
    ),
    ("Lfm2 Lfm2Moe", (_lfm("self_attn", True), _lfm("conv", False))),
    ("Lfm3", (_lfm("self_attn", True, sandwich=True), _lfm("conv", False, sandwich=True))),
    (
        "Qwen3Next Qwen3_5 Qwen3_5Moe",
        (
            _when(_PRE_NORM, block_type="full_attention"),
            _when(_LINEAR_ATTENTION, block_type="linear_attention"),
        ),
    ),
    (
        "Falcon",
        (
            _falcon("ln_attn", "ln_mlp", new_decoder_architecture=True, num_ln_in_parallel_attn=2),
            _falcon("input_layernorm", "input_layernorm", new_decoder_architecture=True, num_ln_in_parallel_attn=1),
            _falcon("input_layernorm", "input_layernorm", new_decoder_architecture=False, parallel_attn=True),
            BlockLayout(
                Branch("self_attention", before="input_layernorm", after=("config.attention_dropout",)),
                Branch("mlp", before="post_attention_layernorm", after=("hidden_dropout",)),
                values_returned=2,
                when={"config.new_decoder_architecture": False, "config.parallel_attn": False},
            ),
        ),
    ),
    (
        "StableLm",
        (
            BlockLayout(
                Branch("self_attn", before="input_layernorm"),
                Branch("mlp", before="input_layernorm", after=("dropout",)),
                parallel=True,
                when={"use_parallel_residual": True},
            ),
            BlockLayout(
                Branch("self_attn", before="input_layernorm"),
                Branch("mlp", before="post_attention_layernorm", after=("dropout",)),
            ),
        ),
    ),
]
"""Layouts of families whose layer class is named <family>DecoderLayer."""

_LINES: dict[str, BlockLayout | tuple[BlockLayout, ...]] = {
    "AfmoeDecoderLayer": BlockLayout(
        Branch("self_attn", before="input_layernorm", after=("post_attention_layernorm",)),
        Branch("mlp", before="pre_mlp_layernorm", after=("post_mlp_layernorm",)),
    ),
    "ApertusDecoderLayer": BlockLayout(
        Branch("self_attn", before="attention_layernorm"), Branch("mlp", before="feedforward_layernorm")
    ),
    "BambaDecoderLayer": (
        BlockLayout(
            Branch("self_attn", before="input_layernorm"),
            Branch("feed_forward", before="pre_ff_layernorm"),
            values_returned=2,
            when={"block_type": "full_attention"},
        ),
        BlockLayout(
            Branch("mamba", before="input_layernorm"),
            Branch("feed_forward", before="pre_ff_layernorm"),
            values_returned=2,
        ),
    ),
    "Emu3DecoderLayer": BlockLayout(
        Branch("self_attn", before="input_layernorm", after=("dropout",)),
        Branch("mlp", before="post_attention_layernorm", after=("dropout",)),
    ),
    **dict.fromkeys(
        ("Glm4DecoderLayer", "Kolibri1DecoderLayer"),
        BlockLayout(
            Branch("self_attn", before="input_layernorm", after=("post_self_attn_layernorm",)),
            Branch("mlp", before="post_attention_layernorm", after=("post_mlp_layernorm",)),
        ),
    ),
    **dict.fromkeys(("GPT2Block", "GPTBigCodeBlock"), _GPT2),
    "GPTNeoBlock": replace(_GPT2, unless=None, values_returned=2),
    **dict.fromkeys(
        ("CodeGenBlock", "GPTJBlock"),
        BlockLayout(Branch("attn", before="ln_1"), Branch("mlp", before="ln_1"), parallel=True, values_returned=2),
    ),
    "GPTNeoXLayer": (
        _when(_GPT_NEOX, use_parallel_residual=False),
        replace(_when(_GPT_NEOX, use_parallel_residual=True), parallel=True),
    ),
    "HyperCLOVAXDecoderLayer": BlockLayout(
        Branch("self_attn", before="input_layernorm", after=("post_norm1",), scale="residual_multiplier"),
        Branch("mlp", before="post_attention_layernorm", after=("post_norm2",), scale="residual_multiplier"),
    ),
    "JambaAttentionDecoderLayer": BlockLayout(
        Branch("self_attn", before="input_layernorm"), Branch("feed_forward", before="pre_ff_layernorm")
    ),
    "JambaMambaDecoderLayer": BlockLayout(
        Branch("mamba", before="input_layernorm"),
        Branch("feed_forward", before="pre_ff_layernorm"),
    ),
    "JetMoeDecoderLayer": BlockLayout(
        Branch("self_attention", before="input_layernorm"), Branch("mlp", before="post_attention_layernorm")
    ),
    "Llama4TextDecoderLayer": BlockLayout(
        Branch("self_attn", before="input_layernorm"), Branch("feed_forward", before="post_attention_layernorm")
    ),
    "MiniCPM3DecoderLayer": BlockLayout(
        Branch("self_attn", before="input_layernorm", scale="residual_scale"),
        Branch("mlp", before="post_attention_layernorm", scale="residual_scale"),
    ),
    "ModernBertDecoderLayer": BlockLayout(Branch("attn", before="attn_norm"), Branch("mlp", before="mlp_norm")),
    "MoshiDecoderLayer": _when(_PRE_NORM, use_flexible_linear=False),
    "PersimmonDecoderLayer": BlockLayout(
        Branch("self_attn", before="input_layernorm"),
        Branch("mlp", before="post_attention_layernorm", after=("dropout",)),
    ),
    "PhiDecoderLayer": BlockLayout(
        Branch("self_attn", before="input_layernorm", after=("resid_dropout",)),
        Branch("mlp", before="input_layernorm", after=("resid_dropout",)),
        parallel=True,
    ),
    **dict.fromkeys(
        ("Phi3DecoderLayer", "Phi4MultimodalDecoderLayer"),
        BlockLayout(
            Branch("self_attn", before="input_layernorm", after=("resid_attn_dropout",)),
            Branch("mlp", before="post_attention_layernorm", after=("resid_mlp_dropout",)),
        ),
    ),
    "RecurrentGemmaDecoderLayer": BlockLayout(
        Branch("temporal_block", before="temporal_pre_norm"), Branch("mlp_block", before="channel_pre_norm")
    ),
    "VaultGemmaDecoderLayer": BlockLayout(
        Branch("self_attn", before="input_layernorm"), Branch("mlp", before="pre_feedforward_layernorm")
    ),
}
"""Layouts that few layer classes share, by class name."""

LAYOUTS: dict[str, tuple[BlockLayout, ...]] = {
    f"{family}DecoderLayer": layouts for families, layouts in _DECODER_LAYERS for family in families.split()
} | {name: layouts if isinstance(layouts, tuple) else (layouts,) for name, layouts in _LINES.items()}
"""Layouts by the class name of the layer in transformers; the first that fits a layer is used."""


_REGISTERED: dict[type[nn.Module], tuple[BlockLayout, ...]] = {}


def register_layout(layer_class: type[nn.Module], *layouts: BlockLayout) -> None:
    """Register how the layers of your own class split into attention and MLP.

    Dynamics may then step by branch, update predictors may read the MLP of the layer before, and MLPs may run in tiles.
    Check a layout with `revformers.verify_gradients` and against the ordinary network (`revformers.Residual`).

    Args:
        layer_class: the class of the layers. A subclass with its own forward needs its own layout.
        layouts: the first that fits a layer is used; see `BlockLayout.when`.

    Raises:
        TypeError: if `layer_class` is no class of modules, or there is no layout or something else than layouts.

    """
    if not (isinstance(layer_class, type) and issubclass(layer_class, nn.Module)):
        raise TypeError(f"register_layout takes the class of the layers, not {layer_class!r}.")
    if not layouts or not all(isinstance(layout, BlockLayout) for layout in layouts):
        raise TypeError(
            f"register_layout takes one revformers.BlockLayout or several after the class, not {layouts!r}."
        )
    _REGISTERED[layer_class] = layouts


def find_layout(layer: nn.Module) -> BlockLayout | None:
    """Return the layout of a layer; None if its branches are not known.

    The layout is that of the first class in the MRO that is registered or defined in transformers, because FSDP makes
    subclasses of layers. A transformers class does not inherit the layout of its parent. A layer whose forward is not
    that of this class, in a subclass or because it was patched, may compute anything, so it has no layout.
    """
    forward: Any = type(layer).forward
    for kind in type(layer).__mro__:
        layouts = _REGISTERED.get(kind)
        is_of_transformers = layouts is None and kind.__module__.startswith("transformers.models.")
        if layouts is None and not is_of_transformers:
            continue
        own: Any = vars(kind).get("forward", forward)
        # transformers wraps the forward of every subclass again.
        if inspect.unwrap(forward) is not inspect.unwrap(own):
            return None
        if is_of_transformers:
            if not _is_of_transformers(forward):
                return None
            layouts = LAYOUTS.get(kind.__name__, ())
        return next((layout for layout in layouts or () if layout.fits(layer)), None)
    return None


@lru_cache
def _is_of_transformers(function: Any) -> bool:
    """Whether a function and all of its wrappers are defined in transformers."""
    while function is not None:
        # A wrapper copies the name of the function that it wraps, but keeps its own globals.
        if not getattr(function, "__globals__", {}).get("__name__", "").startswith("transformers."):
            return False
        function = getattr(function, "__wrapped__", None)
    return True
