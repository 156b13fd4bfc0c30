"""Loading a saved reversible model, by name and through transformers' auto classes."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from revformers import dynamics as dynamics_module
from revformers.hf.reversible import add_update_predictors, make_reversible
from revformers.hf.saving import KEY, MODEL_TYPE

PREDICTOR = ".update_predictor."


def from_pretrained(path: str | os.PathLike, **keywords: Any) -> Any:
    """Load a reversible model, with the dynamics and the activation policy it was saved with.

    Args:
        path: a directory or a hub id that `save_pretrained` or `push_to_hub` of a reversible model wrote.
        keywords: what `AutoModelForCausalLM.from_pretrained` takes (dtype, device_map, attn_implementation, ...).

    Raises:
        FileNotFoundError: where a local path does not exist.
        ValueError: where the model there is not a reversible one.

    """
    hub: dict[str, Any] = {
        key: keywords[key] for key in ("revision", "token", "cache_dir", "subfolder") if key in keywords
    }
    values, _ = PreTrainedConfig.get_config_dict(path, **hub)
    if KEY not in values:
        raise ValueError(
            f"{path} holds an ordinary model; load it with transformers and call revformers.make_reversible(model, "
            f"dynamics)."
        )
    description = values.pop(KEY)
    values.pop("transformers_weights", None)
    values["model_type"] = description["ordinary_model_type"]
    config = CONFIG_MAPPING[values["model_type"]].from_dict(values)
    keywords.pop("config", None)
    dynamics = dynamics_module.from_dict(description["dynamics"])
    if not description["update_predictors"]:
        model = AutoModelForCausalLM.from_pretrained(path, config=config, **keywords)
        return make_reversible(model, dynamics, description["activations"])
    model = make_reversible(_load_without_predictors(path, config, keywords), dynamics, description["activations"])
    add_update_predictors(model)
    _load_predictors(model, path, hub)
    return model


def _load_without_predictors(path: str | os.PathLike, config: PreTrainedConfig, keywords: dict[str, Any]) -> Any:
    """Load the ordinary part; transformers does not know the predictors' weights and need not warn of them."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, found = AutoModelForCausalLM.from_pretrained(path, config=config, output_loading_info=True, **keywords)
    finally:
        logging.set_verbosity(verbosity)
    strange = [name for name in found["unexpected_keys"] if PREDICTOR not in name] + sorted(found["missing_keys"])
    if strange:
        raise ValueError(f"The weights in {path} do not fit the model; at fault are {', '.join(strange[:5])}.")
    return model


def _load_predictors(model: nn.Module, path: str | os.PathLike, hub: dict[str, Any]) -> None:
    """Read the update predictors' weights from the safetensors files of a local or a hub model."""
    hub = {key: value for key, value in hub.items() if key != "subfolder"} | {"allow_patterns": "*.safetensors"}
    folder = Path(path) if Path(path).is_dir() else Path(snapshot_download(str(path), **hub))
    wanted = {name: value for name, value in model.state_dict().items() if PREDICTOR in name}
    for file in sorted(folder.rglob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in wanted.keys() & set(weights.keys()):
                wanted.pop(name).copy_(weights.get_tensor(name))
    if wanted:
        raise ValueError(f"The update predictors in {path} are incomplete; {min(wanted)} is missing.")


class ReversibleConfig(PreTrainedConfig):
    """What `AutoConfig` reads of a saved reversible model; `from_pretrained` reads the rest itself."""

    model_type = MODEL_TYPE


class ReversibleCausalLM:
    """What `AutoModelForCausalLM` loads a saved reversible model with once revformers is imported."""

    config_class = ReversibleConfig

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike, *_: Any, **keywords: Any) -> Any:
        """Load the model with `revformers.from_pretrained`."""
        return from_pretrained(path, **keywords)


def register() -> None:
    """Make `AutoModelForCausalLM.from_pretrained` know saved reversible models."""
    AutoConfig.register(MODEL_TYPE, ReversibleConfig, exist_ok=True)
    AutoModelForCausalLM.register(ReversibleConfig, ReversibleCausalLM, exist_ok=True)
