"""Where prepared data is kept between runs, and how it is put there whole or not at all."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def cache_directory() -> Path:
    """Return the directory for prepared data: REVFORMERS_CACHE if that is set, otherwise ``~/.cache/revformers``.

    As for PyTorch and Hugging Face, XDG_CACHE_HOME takes the place of ``~/.cache``.
    """
    if chosen := os.environ.get("REVFORMERS_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "revformers"


def digest(*values: Any) -> str:
    """Return a short name for `values`, which JSON must be able to hold: equal values, equal name."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of the content of the file at `path` in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Give an empty directory to fill, and rename it to `target` at the end; after an exception nothing is left.

    Where another process has put `target` in place meanwhile, its content stays: both were made from the same values.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f"{target.name}.partial-", dir=target.parent))
    try:
        yield staging
        try:
            staging.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
