"""Comparison of the weights of saved models."""

from pathlib import Path

from revformers.data.cache import file_digest


def same_weights(found: Path, expected: Path) -> bool:
    """Whether the files of weights in two folders are the same, byte by byte; `expected` must hold some."""
    digests = [{path.name: file_digest(path) for path in folder.glob("*.safetensors")} for folder in (found, expected)]
    assert digests[1], f"{expected} holds no weights"
    return digests[0] == digests[1]
