"""Wrappers for PEFT: an adapter of a reversible network is saved with its description, and refused on any other.

The description (`revformers.checkpoints.adapter_base`) is saved beside the adapter. The type in adapter_config.json is
marked: without revformers, PEFT does not know that type and prints it, and the mark says what to install.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from revformers.checkpoints.adapter_base import (
    check_base,
    ordinary_type,
    require_own_predictors,
    seal_adapter,
    unseal_adapter,
)
from revformers.checkpoints.card import CARD_NAME, add_section, has_section
from revformers.checkpoints.model_files import ADAPTER_CONFIG
from revformers.models.identity import warn_of_unregistered
from revformers.models.parts import reversible_stack

Function = Callable[..., Any]


def from_json_file(original: Function, *arguments: Any, **keywords: Any) -> Any:
    """Read the marked type of an adapter of a reversible model."""
    values = original(*arguments, **keywords)
    # A PeftConfig may have no type.
    return values | {"peft_type": ordinary_type(values["peft_type"])} if values.get("peft_type") else values


def save_pretrained(original: Function, model: Any, save_directory: Any, *others: Any, **options: Any) -> Any:
    """Save adapters; those of a reversible base with its description and a marked type."""
    card = Path(save_directory) / CARD_NAME
    ours = has_section(card) or not card.exists()
    base = model.get_base_model()
    require_own_predictors(base)  # before the adapter is written, which would have no description
    result = original(model, save_directory, *others, **options)
    if not options.get("is_main_process", True):
        return result
    reversible = reversible_stack(base)
    if reversible is not None:
        warn_of_unregistered(reversible)
    if reversible is not None and ours and card.is_file():
        add_section(card, base, adapter=True)
    chosen = inspect.signature(original).bind(model, save_directory, *others, **options).arguments
    for name in chosen.get("selected_adapters") or model.peft_config:
        directory = Path(save_directory) / ("" if name == "default" else name)
        if reversible is None:
            unseal_adapter(directory)
        elif (directory / ADAPTER_CONFIG).is_file():
            seal_adapter(base, directory, model.peft_config[name].revision)
    return result


def load_adapter(original: Function, model: Any, *arguments: Any, **keywords: Any) -> Any:
    """Load an adapter; raise ValueError if it was trained on another network."""
    names = ("model_id", "peft_model_id")
    adapter = arguments[0] if arguments else next((keywords[name] for name in names if name in keywords), None)
    if adapter is not None:
        check_base(model, adapter, keywords | (keywords.get("adapter_kwargs") or {}))
    return original(model, *arguments, **keywords)


def hotswap_adapter(original: Function, model: Any, model_name_or_path: Any, *others: Any, **options: Any) -> Any:
    """Swap a loaded adapter for another; raise ValueError if that was trained on another network."""
    check_base(model, model_name_or_path, options)
    return original(model, model_name_or_path, *others, **options)
