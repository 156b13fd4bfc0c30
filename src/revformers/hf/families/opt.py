"""OPT: its MLP lies flat in the layer, and its norms stand before or behind the branches."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional


class OptLayout:
    """The branches of `OPTDecoderLayer` with norms before them (all sizes but 350m, which is not pre-norm)."""

    def attention_update(self, layer: nn.Module, hidden: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Return what attention adds to `hidden`, (batch, tokens, width)."""
        inputs = {name: value for name, value in inputs.items() if name != "use_cache"}
        update = layer.self_attn(layer.self_attn_layer_norm(hidden), **inputs)[0]
        return functional.dropout(update, layer.dropout, layer.training)

    def mlp_update(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """Return what the MLP adds to `hidden`, (batch, tokens, width)."""
        update = layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden))))
        return functional.dropout(update, layer.dropout, layer.training)

    def block_update(self, layer: nn.Module, hidden: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Return what the whole layer adds to `hidden`."""
        attention = self.attention_update(layer, hidden, inputs)
        return attention + self.mlp_update(layer, hidden + attention)
