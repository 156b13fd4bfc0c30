"""PEFT: an adapter knows the reversible network that it was trained on, and is refused on any other.

A PEFT adapter holds no weights of its base. Where the base is reversible, a description of it (`hf.adapter_base`)
is saved beside the adapter, and the type in adapter_config.json is marked: PEFT without revformers does not know that
type and prints it, and it says what to install.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from wrapt import wrap_function_wrapper

from revformers.checkpoints.adapter_base import (
    ADAPTER_CONFIG,
    check_base,
    ordinary_type,
    require_own_predictors,
    seal_adapter,
    unseal_adapter,
)
from revformers.checkpoints.card import CARD_NAME, add_section, has_section
from revformers.models.state import reversible_stack

Function = Callable[..., Any]


def extend_configs(module: ModuleType) -> None:
    """Let PEFT read the configurations of adapters that are marked."""
    wrap_function_wrapper(module, "PeftConfigMixin.from_json_file", _from_json_file)


def extend_models(module: ModuleType) -> None:
    """Mark the adapters of reversible models as they are saved, and compare their base as they are loaded."""
    wrap_function_wrapper(module, "PeftModel.save_pretrained", _save_pretrained)
    wrap_function_wrapper(module, "PeftModel.load_adapter", _load_adapter)


def extend_swapping(module: ModuleType) -> None:
    """Compare the base of adapters that replace loaded ones."""
    wrap_function_wrapper(module, "hotswap_adapter", _hotswap_adapter)


def extend_transformers(module: ModuleType) -> None:
    """Compare the base of adapters that transformers loads into a model itself."""
    wrap_function_wrapper(module, "PeftAdapterMixin.load_adapter", _load_adapter)


def _from_json_file(ordinary: Function, _: Any, arguments: Any, keywords: Any) -> Any:
    values = ordinary(*arguments, **keywords)
    # PeftConfig without a type is read as it is.
    return values | {"peft_type": ordinary_type(values["peft_type"])} if values.get("peft_type") else values


def _save_pretrained(ordinary: Function, model: Any, arguments: Any, keywords: Any) -> Any:
    def save(save_directory: Any, *others: Any, **options: Any) -> Any:
        card = Path(save_directory) / CARD_NAME
        ours = has_section(card) or not card.exists()
        base = model.get_base_model()
        require_own_predictors(base)  # before an adapter without a description is written
        result = ordinary(save_directory, *others, **options)
        if not options.get("is_main_process", True):
            return result
        reversible = reversible_stack(base) is not None
        if reversible and ours and card.is_file():
            add_section(card, base, adapter=True)
        chosen = inspect.signature(ordinary).bind(save_directory, *others, **options).arguments
        for name in chosen.get("selected_adapters") or model.peft_config:
            directory = Path(save_directory) / ("" if name == "default" else name)
            if not reversible:
                unseal_adapter(directory)
            elif (directory / ADAPTER_CONFIG).is_file():
                seal_adapter(base, directory, model.peft_config[name].revision)
        return result

    return save(*arguments, **keywords)


def _load_adapter(ordinary: Function, model: Any, arguments: Any, keywords: Any) -> Any:
    names = ("model_id", "peft_model_id")
    # PEFT's mixed models, which are no PeftModel, call the method as a function.
    model, *others = arguments if model is None else (model, *arguments)
    adapter = others[0] if others else next((keywords[name] for name in names if name in keywords), None)
    if adapter is not None:
        check_base(model, adapter, keywords | (keywords.get("adapter_kwargs") or {}))
    return ordinary(*arguments, **keywords)


def _hotswap_adapter(ordinary: Function, _: Any, arguments: Any, keywords: Any) -> Any:
    def swap(model: Any, model_name_or_path: Any, *others: Any, **options: Any) -> Any:
        check_base(model, model_name_or_path, options)
        return ordinary(model, model_name_or_path, *others, **options)

    return swap(*arguments, **keywords)
