"""The files of a saved model: their location and their names."""

import json
import os
from pathlib import Path

from revformers.checkpoints.marks import ADAPTER_OF_RUN, MODEL_OF_RUN
from revformers.errors import ModelFilesError

CONFIG_NAME = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
INDEX = "model.safetensors.index.json"
VARIANT = "reversible"


def find_model(name: str | os.PathLike) -> str:
    """Return a directory with ~ expanded, or a hub id, as text; raise FileNotFoundError if a path does not exist."""
    path = Path(name).expanduser()
    is_path = not isinstance(name, str) or name.startswith((".", "/", "~")) or name.count("/") > 1
    beside = "/" in str(name) and Path(str(name).partition("/")[0]).is_dir()  # and no account of the hub
    if (is_path or beside) and not path.is_dir():
        raise FileNotFoundError(f"There is no directory {str(name)!r} to load a model from.")
    if path.is_dir() and not (path / CONFIG_NAME).exists() and (inside := _models_of_run(path)):
        raise ModelFilesError(f"{path} is the directory of a run; name {' or '.join(map(str, inside))} in it.")
    return str(path) if is_path else str(name)


def _models_of_run(path: Path) -> list[Path]:
    """Return the directories of the model and of the adapter in a run directory, if it is one."""
    if (path / ADAPTER_CONFIG).exists():
        return []
    files = (path / MODEL_OF_RUN / CONFIG_NAME, path / ADAPTER_OF_RUN / ADAPTER_CONFIG)
    return [file.parent for file in files if file.is_file()]


def own_variant(variant: str | None) -> str:
    """Return the variant under which the weights of a reversible model are saved and loaded.

    It is part of the file names (model.reversible.safetensors), so that code that loads ordinary models, from any
    configuration, finds no weights.
    """
    return f"{VARIANT}.{variant}" if variant else VARIANT


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """Return the safetensors files that transformers loads from `folder`: one, or the shards that the index names."""
    single, index = folder / weights_name(variant), index_path(folder, variant)
    if single.is_file():
        return [single]
    if not index.is_file():
        return []
    return sorted({folder / shard for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})


def weights_name(variant: str | None) -> str:
    """Return the name of a file with all weights."""
    return f"model.{variant}.safetensors" if variant else "model.safetensors"


def index_path(folder: Path, variant: str | None) -> Path:
    """Return the file that names the shards of weights."""
    return folder / (f"{INDEX.removesuffix('.json')}.{variant}.json" if variant else INDEX)
