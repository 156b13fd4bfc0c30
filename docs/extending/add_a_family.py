"""A model family of your own: where the layer of Apertus 1.5 splits into attention and MLP."""

from revformers.models.families import LAYOUTS
from revformers.models.families.layout import BlockLayout, Branch

LAYOUTS["Apertus1p5TextDecoderLayer"] = (
    BlockLayout(
        attention=Branch("self_attn", before="attention_layernorm"),
        mlp=Branch("mlp", before="feedforward_layernorm"),
    ),
)
