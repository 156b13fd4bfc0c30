"""Saving a reversible model so that it loads as itself, and never silently as the ordinary network.

The weights are written as transformers writes them. The config is written with a model type that transformers does
not know until revformers is imported, and with a weight file that cannot exist: the auto classes stop at the first,
the model's own class (which only warns about a foreign model type) at the second. Both print how to load the model.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from revformers import dynamics as dynamics_module

MODEL_TYPE = "reversible (pip install revformers, then import revformers)"
WEIGHTS_NOTE = "this is a reversible model: pip install revformers, then revformers.from_pretrained"
CONFIG_NAME = "config.json"
KEY = "revformers"


def save_pretrained(
    model: PreTrainedModel, save_directory: str | os.PathLike, *arguments: Any, **keywords: Any
) -> None:
    """Stand in for `save_pretrained` of a reversible model: the same files and arguments, and a config that says so.

    Everything is written into a folder beside `save_directory` and moved there when it is complete.
    """
    target = Path(save_directory)
    push_to_hub = keywords.pop("push_to_hub", False)
    repository = keywords.pop("repo_id", target.name)
    target.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        type(model).save_pretrained(model, partial, *arguments, **keywords)
        if (partial / CONFIG_NAME).exists():
            marked = _mark(json.loads((partial / CONFIG_NAME).read_text()), model)
            (partial / CONFIG_NAME).write_text(json.dumps(marked, indent=2) + "\n")
        # The config moves first: at no moment do reversible weights lie beside the config of an ordinary network.
        for file in sorted(partial.iterdir(), key=lambda file: file.name != CONFIG_NAME):
            os.replace(file, target / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if push_to_hub:
        model.push_to_hub(repository, **{key: keywords[key] for key in ("token", "private") if key in keywords})


def from_pretrained(path: str | os.PathLike, **keywords: Any) -> Any:
    """Load a reversible model, with the dynamics and the activation policy it was saved with.

    Args:
        path: a directory or a hub id that `save_pretrained` or `push_to_hub` of a reversible model wrote.
        keywords: what `AutoModelForCausalLM.from_pretrained` takes (dtype, device_map, attn_implementation, ...).

    Raises:
        FileNotFoundError: where a local path does not exist.
        ValueError: where the model there is not a reversible one.

    """
    from revformers.hf.reversible import make_reversible

    hub = {key: keywords[key] for key in ("revision", "token", "cache_dir", "subfolder") if key in keywords}
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
    model = AutoModelForCausalLM.from_pretrained(path, config=config, **keywords)
    return make_reversible(model, dynamics_module.from_dict(description["dynamics"]), description["activations"])


def _mark(config: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    from revformers import __version__
    from revformers.hf.reversible import require_reversible

    reversible = require_reversible(model)
    description = {
        "dynamics": reversible.dynamics.to_dict(),
        "activations": reversible.activations,
        # Not "model_type": transformers takes any nested dictionary with a known one for the config itself.
        "ordinary_model_type": config["model_type"],
        "version": __version__,
    }
    return config | {"model_type": MODEL_TYPE, "transformers_weights": WEIGHTS_NOTE, KEY: description}


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
