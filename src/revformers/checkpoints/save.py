"""Saving of a reversible model so that it never loads silently as the ordinary network.

The configuration is marked (`revformers.checkpoints.model_config`), and the weights are written as a variant, so that
a loader with the configuration of the ordinary network finds no model.safetensors.
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

from revformers.checkpoints.adapter_base import seal_adapter
from revformers.checkpoints.card import CARD_NAME, add_section, has_section, is_ours, model_card
from revformers.checkpoints.hub import upload
from revformers.checkpoints.model_config import identity_of
from revformers.checkpoints.model_files import ADAPTER_CONFIG, CONFIG_NAME, VARIANT, own_variant
from revformers.files import PARTIAL
from revformers.models.identity import warn_of_unregistered
from revformers.models.parts import require_reversible, reversible_stack

WEIGHTS = re.compile(rf"model(\.{VARIANT})?(-\d{{5}}-of-\d{{5}})?\.safetensors(\.index(\.{VARIANT})?\.json)?")


def save_pretrained(
    model: PreTrainedModel,
    original: Callable[..., None],
    save_directory: str | os.PathLike,
    *arguments: Any,
    **keywords: Any,
) -> None:
    """Save a reversible model with transformers' arguments and files, a marked configuration and a model card.

    The files are written to a folder beside `save_directory` and moved there when they are complete. An existing
    README.md that revformers did not write is kept, with a warning. With ``push_to_hub=True`` the written files are
    uploaded; ``repo_id`` and the other arguments of `push_to_hub` may be given.

    Args:
        model: a reversible model.
        original: `save_pretrained` of its family, bound to it.
        save_directory: the target directory.
        arguments: further positional arguments of `transformers.PreTrainedModel.save_pretrained`.
        keywords: its keyword arguments.

    Raises:
        TypeError: if an argument of the upload does not exist.

    Warns:
        UserWarning: if the dynamics or the policy are not registered, so that the saved model cannot be loaded.

    """
    warn_of_unregistered(require_reversible(model))
    target = Path(save_directory)
    saving, uploading = _sorted_arguments(model, save_directory, arguments, keywords)
    target.mkdir(parents=True, exist_ok=True)
    # Not `written_whole`, which replaces the directory: other files in it must stay.
    with tempfile.TemporaryDirectory(
        prefix=f".{target.name}{PARTIAL}", dir=target.parent, ignore_cleanup_errors=True
    ) as folder:
        partial = Path(folder)
        original(partial, **saving | {"variant": own_variant(saving.get("variant"))})
        if (partial / ADAPTER_CONFIG).is_file():  # for a model with an adapter transformers saves only the adapter
            seal_adapter(model, partial)
        written = sorted(file.name for file in partial.iterdir())
        if CONFIG_NAME in written:
            written += _write_card(model, partial, target)
        # The config moves first, so that reversible weights never lie beside the config of an ordinary network.
        for name in sorted(written, key=lambda name: name != CONFIG_NAME):
            os.replace(partial / name, target / name)
    if any(map(WEIGHTS.fullmatch, written)):
        # transformers prefers model.safetensors to shards, even if it is older.
        for file in target.iterdir():
            if WEIGHTS.fullmatch(file.name) and file.name not in written:
                file.unlink()
    if uploading is not None and written:
        upload(model, target, written, **{"repo_id": target.name} | uploading)


def refuse_mixed(original: Callable[..., Any], model: Any, *arguments: Any, **keywords: Any) -> Any:
    """Save a model, but raise ValueError if its configuration does not match its decoder.

    A decoder that is moved into another model keeps its dynamics, which the configuration of that model does not
    mention.
    """
    reversible, told = reversible_stack(model), identity_of(model.config)
    if (reversible is None) != (told is None):
        decoder, config = ("reversible", "ordinary") if told is None else ("ordinary", "reversible")
        name = type(model).__name__
        if told is None and not type(model).__module__.startswith("transformers."):
            warnings.warn(
                f"The decoder in this {name} is reversible, but its configuration does not say so: it is loaded as a "
                f"reversible one only if the __init__ of {name} makes it so.",
                stacklevel=3,
            )
            return original(model, *arguments, **keywords)
        raise ValueError(
            f"The decoder in this {name} is {decoder}, but its configuration is that of a model that is {config}, so "
            f"another network would be loaded (a decoder was put into a finished model, or two models share a "
            f"configuration). Call revformers.make_reversible(model, dynamics) on the whole model, save the reversible "
            f"part by itself, or give an ordinary model a configuration of its own."
        )
    return original(model, *arguments, **keywords)


def _sorted_arguments(
    model: PreTrainedModel, save_directory: str | os.PathLike, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the arguments for saving, and those for the upload; None without an upload."""
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
    """Write the model card into `partial`, unless `target` has one that is not ours; return the written names."""
    if has_section(target / CARD_NAME):
        add_section(target / CARD_NAME, model)
        return []
    if (target / CARD_NAME).exists() and not is_ours(target / CARD_NAME):
        warnings.warn(
            f"{target / CARD_NAME} was not written by revformers and is kept; delete it to have the model card "
            f"written.",
            stacklevel=3,
        )
        return []
    model_card(model).save(partial / CARD_NAME)
    return [CARD_NAME]
