"""Finding the decoder and its layers, and refusing the models that are no plain fold over them."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from revformers.errors import NotReversibleError


@dataclass(frozen=True)
class DecoderStack:
    """The module that runs the layers, and the layers, in order."""

    decoder: Any
    layers: list[Any]


def unwrap(model: Any) -> Any:
    """Return the transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def find_stack(model: nn.Module) -> DecoderStack:
    """Return the decoder of `model` (a transformers model, or a PEFT model around one) and its layers.

    Raises:
        NotReversibleError: where there is no decoder-only stack of layers that each map a state to the next.

    """
    model = unwrap(model)
    name = type(model).__name__
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "get_decoder"):
        raise NotReversibleError(f"{name} is not a transformers model; make_reversible takes causal language models.")
    if getattr(config, "is_encoder_decoder", False):
        raise NotReversibleError(f"{name} is an encoder-decoder; only decoder-only models can be reversed.")
    decoder = model.get_decoder()
    text = config.get_text_config(decoder=True)
    depth = getattr(text, "num_hidden_layers", None)
    if depth is None:
        raise NotReversibleError(f"The configuration of {name} does not say how many layers its decoder has.")
    for module in [decoder, *decoder.children()]:
        for child in module.children():
            if isinstance(child, nn.ModuleList) and len(child) == depth:
                layers = list(child)
                _refuse(name, text, layers)
                return DecoderStack(module, layers)
    raise NotReversibleError(f"No list of {depth} layers was found in the decoder of {name}.")


def _refuse(name: str, config: object, layers: list[nn.Module]) -> None:
    """Raise NotReversibleError for what is known to break the fold p[l+1] = layer(p[l])."""
    if len(set(map(id, layers))) != len(layers):
        raise NotReversibleError(f"{name} uses a layer more than once; only stacks of distinct layers can be reversed.")
    reasons = {
        "num_kv_shared_layers": "shares keys and values between layers, so that a layer reads more than one state",
        "altup_num_inputs": "carries several streams from layer to layer (AltUp)",
        "hc_mult": "carries several streams from layer to layer (hyper-connections)",
        "layerdrop": "skips layers at random (LayerDrop); set layerdrop to 0",
    }
    for option, reason in reasons.items():
        if getattr(config, option, None):
            raise NotReversibleError(f"{name} {reason}.")
