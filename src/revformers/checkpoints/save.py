"""Saving a reversible model so that it loads as itself, and never silently as the ordinary network.

The config is marked (`revformers.checkpoints.model_config`), and the weights are written as transformers writes them,
as a variant of their own: a loader that is given the configuration of the ordinary network finds no model.safetensors.
"""

import inspect
import os
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from revformers.checkpoints.adapter_base import ADAPTER_CONFIG, seal_adapter
from revformers.checkpoints.card import CARD_NAME, add_section, has_section, is_ours, model_card
from revformers.checkpoints.hub import upload
from revformers.checkpoints.model_config import identity_of
from revformers.checkpoints.model_files import VARIANT, own_variant
from revformers.models.state import reversible_stack

CONFIG_NAME = "config.json"
WEIGHTS = re.compile(rf"model(\.{VARIANT})?(-\d{{5}}-of-\d{{5}})?\.safetensors(\.index(\.{VARIANT})?\.json)?")


def save_pretrained(
    model: PreTrainedModel,
    ordinary: Callable[..., None],
    save_directory: str | os.PathLike,
    *arguments: Any,
    **keywords: Any,
) -> None:
    """Save a reversible model as transformers saves it: the same arguments and files, a marked config, a card.

    Everything is written into a folder beside `save_directory` and moved there when it is complete. A README.md that
    is there already and that revformers did not write is left as it is, with a warning. With ``push_to_hub=True`` the
    files that were written are uploaded; ``repo_id`` and what else `push_to_hub` takes may be given.

    Args:
        model: a reversible model.
        ordinary: `save_pretrained` of its family, bound to it.
        save_directory: where to.
        arguments: what `transformers.PreTrainedModel.save_pretrained` takes besides.
        keywords: the same by name.

    Raises:
        TypeError: for an argument of the upload that does not exist.

    """
    target = Path(save_directory)
    saving, uploading = _sorted_arguments(model, save_directory, arguments, keywords)
    target.mkdir(parents=True, exist_ok=True)
    # Not `written_whole`, which replaces a directory: what else is in this one stays.
    with tempfile.TemporaryDirectory(
        prefix=f".{target.name}-", dir=target.parent, ignore_cleanup_errors=True
    ) as folder:
        partial = Path(folder)
        ordinary(partial, **saving | {"variant": own_variant(saving.get("variant"))})
        if (partial / ADAPTER_CONFIG).is_file():  # transformers saves the adapter alone where there is one
            seal_adapter(model, partial)
        written = sorted(file.name for file in partial.iterdir())
        if CONFIG_NAME in written:
            written += _write_card(model, partial, target)
        # The config moves first: at no moment do reversible weights lie beside the config of an ordinary network.
        for name in sorted(written, key=lambda name: name != CONFIG_NAME):
            os.replace(partial / name, target / name)
    if any(map(WEIGHTS.fullmatch, written)):
        # transformers prefers model.safetensors to shards, whichever of them is older.
        for file in target.iterdir():
            if WEIGHTS.fullmatch(file.name) and file.name not in written:
                file.unlink()
    if uploading is not None and written:
        upload(model, target, written, **{"repo_id": target.name} | uploading)


def refuse_mixed(ordinary: Callable[..., Any], model: Any, *arguments: Any, **keywords: Any) -> Any:
    """Refuse to save a model whose decoder is not what its configuration says.

    A decoder that is taken out of its model and put into another one takes its dynamics along, and the configuration of
    that model knows nothing of it.
    """
    reversible, told = reversible_stack(model), identity_of(model.config)
    if (reversible is None) != (told is None):
        decoder, config = ("reversible", "ordinary") if told is None else ("ordinary", "reversible")
        name = type(model).__name__
        if told is None and not type(model).__module__.startswith("transformers."):
            warnings.warn(
                f"The decoder in this {name} is reversible, and its configuration does not say so: it is loaded as a "
                f"reversible one only where the __init__ of {name} makes it so.",
                stacklevel=3,
            )
            return ordinary(model, *arguments, **keywords)
        raise ValueError(
            f"The decoder in this {name} is {decoder}, and its configuration is that of a model that is {config}, as "
            f"where a decoder was put into a finished model or two models share a configuration, so that another "
            f"network would be loaded. Call revformers.make_reversible(model, dynamics) on the whole model, save the "
            f"reversible part by itself, or give an ordinary model a configuration of its own."
        )
    return ordinary(model, *arguments, **keywords)


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
    if has_section(target / CARD_NAME):
        add_section(target / CARD_NAME, model)
        return []
    if (target / CARD_NAME).exists() and not is_ours(target / CARD_NAME):
        warnings.warn(
            f"{target / CARD_NAME} is not one of revformers and was left as it is; delete it to have the model card "
            f"written.",
            stacklevel=3,
        )
        return []
    model_card(model).save(partial / CARD_NAME)
    return [CARD_NAME]
