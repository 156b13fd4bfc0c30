"""The cache of prepared data: its directory, and the names of its entries."""

import atexit
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from revformers.errors import UserError
from revformers.files import check_place


def cache_directory() -> Path:
    """Return the directory for prepared data: REVFORMERS_CACHE if that is set, otherwise ``~/.cache/revformers``.

    As for PyTorch and Hugging Face, XDG_CACHE_HOME replaces ``~/.cache``. A home that cannot be written to is replaced
    by a temporary directory, with a warning.

    Raises:
        UserError: if REVFORMERS_CACHE names a directory that cannot be written to.

    """
    if chosen := os.environ.get("REVFORMERS_CACHE"):
        return _checked(Path(chosen).expanduser())
    directory = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "revformers"
    try:
        return _checked(directory)
    except UserError as error:
        return _temporary(str(error))


@cache
def _checked(directory: Path) -> Path:
    check_place(directory, directory=True)
    return directory


@cache
def _temporary(reason: str) -> Path:
    directory = Path(tempfile.mkdtemp(prefix="revformers-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    warnings.warn(
        f"{reason} Prepared data is kept in {directory} until this process ends; set REVFORMERS_CACHE to keep it.",
        stacklevel=4,
    )
    return directory


def digest(*values: Any) -> str:
    """Return a short name for `values`, which must be serialisable as JSON; equal values have equal names."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of the file at `path` in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
