"""Saving a reversible model so that it loads as itself, and never silently as the ordinary network.

The weights are written as transformers writes them. The config is written with a model type that transformers does
not know until revformers is imported, and with a weight file that cannot exist: the auto classes stop at the first,
the model's own class (which only warns about a foreign model type) at the second. Both print how to load the model.
"""

import inspect
import json
import os
import re
import shutil
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from revformers.hf.card import CARD_NAME, is_ours, model_card
from revformers.hf.hub import upload
from revformers.hf.state import predictor_form, require_reversible

MODEL_TYPE = "reversible (pip install revformers, then import revformers)"
WEIGHTS_NOTE = "this is a reversible model: pip install revformers, then revformers.from_pretrained"
CONFIG_NAME = "config.json"
KEY = "revformers"
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


def save_pretrained(
    model: PreTrainedModel, save_directory: str | os.PathLike, *arguments: Any, **keywords: Any
) -> None:
    """Stand in for `save_pretrained` of a reversible model: the same arguments and files, a marked config, a card.

    Everything is written into a folder beside `save_directory` and moved there when it is complete. A README.md that
    is there already and that revformers did not write is left as it is, with a warning. With ``push_to_hub=True`` the
    files that were written are uploaded; ``repo_id`` and what else `push_to_hub` takes may be given.

    Raises:
        TypeError: for an argument of the upload that does not exist.

    """
    target = Path(save_directory)
    saving, uploading = _sorted_arguments(model, save_directory, arguments, keywords)
    target.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        type(model).save_pretrained(model, partial, **saving)
        written = sorted(file.name for file in partial.iterdir())
        if CONFIG_NAME in written:
            marked = _mark(json.loads((partial / CONFIG_NAME).read_text()), model)
            (partial / CONFIG_NAME).write_text(json.dumps(marked, indent=2) + "\n")
            written += _write_card(model, partial, target)
        # The config moves first: at no moment do reversible weights lie beside the config of an ordinary network.
        for name in sorted(written, key=lambda name: name != CONFIG_NAME):
            os.replace(partial / name, target / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if any(map(WEIGHTS.fullmatch, written)):
        # transformers prefers model.safetensors to shards, whichever of them is older.
        for file in target.iterdir():
            if WEIGHTS.fullmatch(file.name) and file.name not in written:
                file.unlink()
    if uploading is not None and written:
        upload(model, target, written, **{"repo_id": target.name} | uploading)


def _sorted_arguments(
    model: PreTrainedModel, save_directory: str | os.PathLike, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the arguments for saving, and those for the upload or None where nothing is to be uploaded."""
    signature = inspect.signature(PreTrainedModel.save_pretrained)
    saving = dict(signature.bind(model, save_directory, *arguments, **keywords).arguments)
    del saving["self"], saving["save_directory"]
    others = saving.pop("kwargs", {})
    if not saving.pop("push_to_hub", False):
        return saving | others, None
    if "token" in saving:
        others["token"] = saving.pop("token")
    return saving, others


def _write_card(model: PreTrainedModel, partial: Path, target: Path) -> list[str]:
    """Write the model card into `partial`, unless `target` has one that is not ours; return the names written."""
    if (target / CARD_NAME).exists() and not is_ours(target / CARD_NAME):
        warnings.warn(
            f"{target / CARD_NAME} is not one of revformers and was left as it is; delete it to have the model card "
            f"written.",
            stacklevel=3,
        )
        return []
    model_card(model).save(partial / CARD_NAME)
    return [CARD_NAME]


def _mark(config: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    reversible, form = require_reversible(model), predictor_form(model)
    description: dict[str, Any] = {
        "dynamics": reversible.dynamics.to_dict(),
        "activations": reversible.activations,
        # Not "model_type": transformers takes any nested dictionary with a known one for the config itself.
        "ordinary_model_type": config["model_type"],
        "update_predictors": None if form is None else form.to_dict(),
        "version": version("revformers"),
    }
    if reversible.provenance is not None:
        description["provenance"] = reversible.provenance.to_dict()
    return config | {"model_type": MODEL_TYPE, "transformers_weights": WEIGHTS_NOTE, KEY: description}
