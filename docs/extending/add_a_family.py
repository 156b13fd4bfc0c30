"""A model family of your own: where the layer of Apertus 1.5 splits into attention and MLP."""

from transformers.models.apertus1p5.modeling_apertus1p5 import Apertus1p5TextDecoderLayer

import revformers as rf

rf.register_layout(
    Apertus1p5TextDecoderLayer,
    rf.BlockLayout(
        attention=rf.Branch("self_attn", before="attention_layernorm"),
        mlp=rf.Branch("mlp", before="feedforward_layernorm"),
    ),
)
