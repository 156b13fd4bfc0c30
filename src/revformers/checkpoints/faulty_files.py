"""Errors about the files of a model that cannot be loaded, and the search for the faulty one."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from revformers.checkpoints.hub_files import local_folder
from revformers.checkpoints.model_files import ADAPTER_CONFIG, CONFIG_NAME, index_path, weight_files, weights_name
from revformers.errors import ModelFilesError, NotReversibleError
from revformers.private_api import is_size_mismatch


def place_without(path: str | os.PathLike) -> str:
    """Return the beginning of a sentence about what is not in a directory, or on the hub; "no model" may follow it."""
    return f"{path} holds" if Path(path).is_dir() else f"There is no directory {path}, and the hub has"


def refuse_own_code(path: str, error: Exception) -> None:
    """Raise ModelFilesError if `error` is that of a model whose Python code lies beside its weights."""
    if "trust_remote_code" in str(error):
        raise ModelFilesError(
            f"{path} needs Python code of its own, which is not run; load it with transformers and "
            f"trust_remote_code=True if you trust it, and pass the model to revformers in Python."
        ) from error


SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
"""Fields of a configuration, as most families call them, that no model can have below 1."""


def refuse_impossible_sizes(name: str, values: Mapping[str, Any]) -> None:
    """Raise ModelFilesError if a size in the values of the configuration called `name` is below 1."""
    for field in SIZES:
        size = values.get(field)
        if isinstance(size, int) and size < 1:
            raise ModelFilesError(f"The configuration {name!r} describes no model: {field} is {size}; correct it.")


def missing_config(folder: Path) -> str:
    """Return one sentence about a folder without config.json, which names the base of an adapter in it."""
    remedy, adapter = "name the directory of one", folder / ADAPTER_CONFIG
    if adapter.is_file():
        base = None
        with contextlib.suppress(ValueError, AttributeError):
            base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
        model = f"the model {base}" if base else "the model"
        remedy = f"name {model} that the adapter there belongs to, or load both with revformers.load_adapter or PEFT"
    return f"{folder} has no config.json, so it holds no whole model; {remedy}."


def refuse_weights(path: str, verb: str, names: Iterable[str]) -> None:
    """Raise ModelFilesError if `names` is not empty: parameters that the weights in `path` lack, or have in excess."""
    wrong = sorted(names)
    if wrong:
        raise ModelFilesError(
            f"The weights in {path} {verb} {', '.join(wrong[:3])}{f' and {len(wrong) - 3} more' if wrong[3:] else ''}; "
            f"they do not fit its config.json, or what was given in its place (num_hidden_layers, num_labels, ...); "
            f"leave that out, or save or download the model again."
        )


@contextmanager
def refuse_pickle(path: str | os.PathLike, kind: str) -> Iterator[None]:
    """Convert PyTorch's refusal of a pickle with code, which says how to run the code, to ModelFilesError.

    Args:
        path: the directory or hub id that is loaded in the block.
        kind: what it holds, a model or an adapter.

    """
    try:
        yield
    except UnpicklingError as error:
        raise ModelFilesError(
            f"The weights in {path} are a pickle that holds more than tensors, which may run code and is not loaded; "
            f"take the {kind} in safetensors."
        ) from error


@contextmanager
def clear_errors(path: str, keywords: Mapping[str, Any], variant: str | None = None) -> Iterator[None]:
    """Convert errors of transformers and safetensors to ModelFilesError, if a file of the model is the cause.

    Args:
        path: the directory or hub id that is loaded in the block.
        keywords: keywords of `from_pretrained`, which determine where the files of a hub id are cached.
        variant: the variant of the weights.

    """
    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        fault = (
            None
            if isinstance(error, ModelFilesError | NotReversibleError)
            else _fault_in_files(path, keywords, variant)
        )
        if fault is None:
            raise
        raise ModelFilesError(fault) from error
    except RuntimeError as error:
        if not is_size_mismatch(error):
            raise
        raise ModelFilesError(
            f"The weights in {path} have other sizes than its config.json describes, or what was given in its place "
            f"(num_labels, vocab_size, ...): leave that out, pass ignore_mismatched_sizes=True for new weights there, "
            f"or save or download the model again."
        ) from error


def _fault_in_files(path: str, keywords: Mapping[str, Any], variant: str | None) -> str | None:
    """Return one sentence about the first file of a model that cannot be read; None if all can be read."""
    try:
        folder = local_folder(path, keywords, local_files_only=True)
    except (HFValidationError, LocalEntryNotFoundError):
        return None
    if not folder.is_dir():
        return f"There is no folder {folder} to load a model from."
    again = "save or download the model again"
    config = folder / CONFIG_NAME
    if not config.is_file():
        return missing_config(folder)
    for file in (config, index_path(folder, variant)):
        try:
            readable = not file.is_file() or isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
        except ValueError:
            readable = False
        if not readable:
            return f"{file} is damaged (it is not a JSON object); {again}."
    try:
        files = weight_files(folder, variant)
    except (KeyError, AttributeError):
        return f"{index_path(folder, variant)} is damaged (it names no files); {again}."
    for file in files:
        if not file.is_file():
            return f"{file}, one of {len(files)} files of weights, is missing; {again}."
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            return f"{file} is damaged or incomplete ({error}); {again}."
    if not files and (variant or not any(folder.glob("pytorch_model*.bin"))):
        return f"{folder} has a config.json but no weights ({weights_name(variant)}); {again}."
    return None
