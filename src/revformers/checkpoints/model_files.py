"""The files of a saved model: their location, their names, and the search for a faulty one."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from revformers.errors import ModelFilesError, NotReversibleError
from revformers.private_api import is_size_mismatch

INDEX = "model.safetensors.index.json"
VARIANT = "reversible"

SECONDS_FOR_THE_HUB = 10
"""How long to wait for an answer of the hub about a model."""

UNREACHABLE: Any = HfHubHTTPError.__bases__
"""OSError and the error of the HTTP library, which depends on the version of huggingface_hub."""


def find_model(name: str | os.PathLike) -> str:
    """Return a directory with ~ expanded, or a hub id, as text; raise FileNotFoundError if a path does not exist."""
    path = Path(name).expanduser()
    is_path = not isinstance(name, str) or name.startswith((".", "/", "~")) or name.count("/") > 1
    beside = "/" in str(name) and Path(str(name).partition("/")[0]).is_dir()  # and no account of the hub
    if (is_path or beside) and not path.is_dir():
        raise FileNotFoundError(f"There is no directory {str(name)!r} to load a model from.")
    if path.is_dir() and not (path / "config.json").exists() and (inside := _models_of_run(path)):
        raise ModelFilesError(f"{path} is the directory of a run; name {' or '.join(map(str, inside))} in it.")
    return str(path) if is_path else str(name)


def _models_of_run(path: Path) -> list[Path]:
    """Return the directories of the model and of the adapter in a run directory, if it is one."""
    if (path / "adapter_config.json").exists():
        return []
    files = (path / "model" / "config.json", path / "adapter" / "adapter_config.json")
    return [file.parent for file in files if file.is_file()]


def look_up(name: str, keywords: Mapping[str, Any]) -> None:
    """Raise FileNotFoundError at once if `name` is neither a directory, nor cached, nor can the hub be asked for it.

    transformers asks a hub that cannot be reached for half a minute.
    """
    cached = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    # a download that failed leaves a folder without files
    is_cached = next(cached.glob("snapshots/*/*"), None) is not None
    if Path(name).is_dir() or is_cached or keywords.get("cache_dir") or keywords.get("local_files_only"):
        return
    try:
        HfApi().model_info(name, timeout=SECONDS_FOR_THE_HUB)
    except HFValidationError as error:
        raise FileNotFoundError(f"There is no directory {name!r}, and the hub has no names of this form.") from error
    except HfHubHTTPError:
        pass  # loading says whether it does not exist or is private
    except UNREACHABLE as error:
        raise FileNotFoundError(
            f"There is no directory {name!r}, and the Hugging Face hub cannot be asked for a model of this name: "
            f"{'offline mode is on' if constants.is_offline_mode() else 'it cannot be reached'}."
        ) from error


def refuse_own_code(path: str, error: Exception) -> None:
    """Raise ModelFilesError if `error` is that of a model whose Python code lies beside its weights."""
    if "trust_remote_code" in str(error):
        raise ModelFilesError(
            f"{path} needs Python code of its own, which is not run; load it with transformers and "
            f"trust_remote_code=True if you trust it, and pass the model to revformers in Python."
        ) from error


def hub_keywords(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of `from_pretrained` that determine the location and the revision of a file."""
    names = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download")
    return {name: keywords[name] for name in names if keywords.get(name) is not None}


def missing_config(folder: Path) -> str:
    """Return one sentence about a folder without config.json, which names the base of an adapter in it."""
    remedy, adapter = "name the directory of one", folder / "adapter_config.json"
    if adapter.is_file():
        base = None
        with contextlib.suppress(ValueError, AttributeError):
            base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
        model = f"the model {base}" if base else "the model"
        remedy = f"name {model} that the adapter there belongs to, or load both with revformers.load_adapter or PEFT"
    return f"{folder} has no config.json, so it holds no whole model; {remedy}."


def own_variant(variant: str | None) -> str:
    """Return the variant under which the weights of a reversible model are saved and loaded.

    It is part of the file names (model.reversible.safetensors), so that code that loads ordinary models, from any
    configuration, finds no weights.
    """
    return f"{VARIANT}.{variant}" if variant else VARIANT


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


def local_folder(path: str, keywords: Mapping[str, Any], **options: Any) -> Path:
    """Return the local folder with the files of a directory or a hub id.

    Args:
        path: a directory or a hub id.
        keywords: keywords of `from_pretrained`.
        options: further options of `huggingface_hub.snapshot_download`.

    """
    folder = Path(path)
    if not folder.is_dir():
        given = {name: value for name, value in hub_keywords(keywords).items() if name != "subfolder"}
        folder = Path(snapshot_download(path, **given | options))
    return folder / (keywords.get("subfolder") or "")


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """Return the safetensors files that transformers loads from `folder`: one, or the shards that the index names."""
    single, index = folder / _single(variant), _index(folder, variant)
    if single.is_file():
        return [single]
    if not index.is_file():
        return []
    return sorted({folder / shard for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})


def _single(variant: str | None) -> str:
    return f"model.{variant}.safetensors" if variant else "model.safetensors"


def _index(folder: Path, variant: str | None) -> Path:
    return folder / (f"{INDEX.removesuffix('.json')}.{variant}.json" if variant else INDEX)


def _fault_in_files(path: str, keywords: Mapping[str, Any], variant: str | None) -> str | None:
    """Return one sentence about the first file of a model that cannot be read; None if all can be read."""
    try:
        folder = local_folder(path, keywords, local_files_only=True)
    except (HFValidationError, LocalEntryNotFoundError):
        return None
    if not folder.is_dir():
        return f"There is no folder {folder} to load a model from."
    again = "save or download the model again"
    config = folder / "config.json"
    if not config.is_file():
        return missing_config(folder)
    for file in (config, _index(folder, variant)):
        try:
            readable = not file.is_file() or isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
        except ValueError:
            readable = False
        if not readable:
            return f"{file} is damaged (it is not a JSON object); {again}."
    try:
        files = weight_files(folder, variant)
    except (KeyError, AttributeError):
        return f"{_index(folder, variant)} is damaged (it names no files); {again}."
    for file in files:
        if not file.is_file():
            return f"{file}, one of {len(files)} files of weights, is missing; {again}."
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            return f"{file} is damaged or incomplete ({error}); {again}."
    if not files and (variant or not any(folder.glob("pytorch_model*.bin"))):
        return f"{folder} has a config.json but no weights ({_single(variant)}); {again}."
    return None
