"""The content of the model and the tokenizer that a run reads, by which a resumed run knows them again."""

from pathlib import Path

from revformers.checkpoints.gguf_file import find_gguf, is_gguf
from revformers.checkpoints.hub_files import local_folder
from revformers.checkpoints.model_files import CONFIG_NAME, VARIANT, find_model, weight_files
from revformers.data.cache import digest, file_digest

TOKENIZER_FILES = (
    "*token*.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template*",
    "additional_chat_templates/*",
)
"""Patterns of the files from which transformers loads a tokenizer and its chat templates."""


def content_of_tokenizer(name: str, revision: str | None = None) -> str:
    """Return a name for the content of a tokenizer that has been loaded: from a directory, the hub or a GGUF file."""
    if is_gguf(name):
        return file_digest(find_gguf(name))
    folder = _folder(name, revision)
    return _digest(folder, sorted({file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)}))


def content_of_configuration(name: str, revision: str | None = None) -> str:
    """Return a name for the content of the configuration of a loaded model: of a directory or the hub."""
    folder = _folder(name, revision)
    return _digest(folder, [folder / CONFIG_NAME])


def content_of_weights(name: str, revision: str | None = None) -> str:
    """Return a name for the content of the weights of a model that has been loaded. All of its weights are read."""
    if is_gguf(name):
        return file_digest(find_gguf(name))
    folder = _folder(name, revision)
    files = weight_files(folder, VARIANT) or weight_files(folder) or sorted(folder.glob("pytorch_model*.bin"))
    return _digest(folder, files)


def _folder(name: str, revision: str | None) -> Path:
    return local_folder(find_model(name), {"revision": revision}, local_files_only=True)


def _digest(folder: Path, files: list[Path]) -> str:
    return digest({file.relative_to(folder).as_posix(): file_digest(file) for file in files})
