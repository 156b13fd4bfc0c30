"""The cache of prepared data: its directory, and the names of its entries."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def cache_directory() -> Path:
    """Return the directory for prepared data: REVFORMERS_CACHE if that is set, otherwise ``~/.cache/revformers``.

    As for PyTorch and Hugging Face, XDG_CACHE_HOME replaces ``~/.cache``.
    """
    if chosen := os.environ.get("REVFORMERS_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "revformers"


def digest(*values: Any) -> str:
    """Return a short name for `values`, which must be serialisable as JSON; equal values have equal names."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of the file at `path` in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
