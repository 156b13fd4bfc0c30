"""Saving a reversible model so that it loads as itself, and never silently as the ordinary network.

The weights are written as transformers writes them. The config is written with a model type that transformers does
not know until revformers is imported, and with a weight file that cannot exist: the auto classes stop at the first,
the model's own class (which only warns about a foreign model type) at the second. Both print how to load the model.
"""

import json
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from revformers.hf.state import require_reversible, update_predictors

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


def _mark(config: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    reversible = require_reversible(model)
    description = {
        "dynamics": reversible.dynamics.to_dict(),
        "activations": reversible.activations,
        # Not "model_type": transformers takes any nested dictionary with a known one for the config itself.
        "ordinary_model_type": config["model_type"],
        "update_predictors": bool(update_predictors(model)),
        "version": version("revformers"),
    }
    return config | {"model_type": MODEL_TYPE, "transformers_weights": WEIGHTS_NOTE, KEY: description}
