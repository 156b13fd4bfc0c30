"""Discovery of the decoder and its layers, and refusal of models that cannot be made reversible."""

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
        NotReversibleError: if the model is not a decoder-only stack of layers that each map a state to the next.

    """
    inner = unwrap(model)
    name = type(inner).__name__
    config = getattr(inner, "config", None)
    if config is None or not hasattr(inner, "get_decoder"):
        raise NotReversibleError(f"{name} is not a transformers model; make_reversible takes nothing else.")
    if getattr(config, "is_encoder_decoder", False):
        raise NotReversibleError(f"{name} is an encoder-decoder; only decoder-only models can be reversed.")
    decoder = inner.get_decoder()
    text = config.get_text_config(decoder=True)
    _refuse(name, text)
    # In LongCat, num_hidden_layers counts half layers, and num_layers counts layers.
    depths = [getattr(text, name) for name in ("num_hidden_layers", "num_layers") if hasattr(text, name)]
    if not depths:
        raise NotReversibleError(f"The configuration of {name} does not say how many layers its decoder has.")
    # get_decoder returns the head if the head is named "decoder" (ModernBERT).
    for root in (decoder, inner.base_model):
        for module in (root, *root.children()):
            for child in module.children():
                if isinstance(child, nn.ModuleList) and len(child) in depths:
                    layers = list(child)
                    if len(set(map(id, layers))) != len(layers):
                        raise NotReversibleError(
                            f"{name} uses a layer more than once; only stacks of distinct layers can be reversed."
                        )
                    # get_decoder of Llama 4 returns the whole model, whose forward must stay as trainers inspect it.
                    return DecoderStack(module if root is inner else root, layers)
    raise NotReversibleError(
        f"No list of {' or '.join(map(str, depths))} layers was found in the decoder of {name}; a stage of a pipeline, "
        f"which has only some of them, cannot be reversed."
    )


def _refuse(name: str, config: object) -> None:
    """Raise NotReversibleError for a configuration known to violate p[l+1] = layer(p[l])."""

    def has(option: str) -> bool:
        return bool(getattr(config, option, None))

    if has("n_layers_per_attn_res_block"):
        raise NotReversibleError(f"{name} lets layers read the states of earlier layers (attention residuals).")
    if has("num_kv_shared_layers"):
        raise NotReversibleError(
            f"{name} shares keys and values between layers, so that a layer reads more than one state."
        )
    if has("patcher_config"):
        raise NotReversibleError(f"{name} runs several stacks of layers, not one.")
    if has("H_cycles"):
        raise NotReversibleError(f"{name} runs its layers several times over.")
    for option in ("layerdrop", "decoder_layerdrop"):
        if has(option):
            raise NotReversibleError(f"{name} skips layers at random (LayerDrop); set {option} to 0.")
