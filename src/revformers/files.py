"""Atomic writing of files and directories."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".partial-"
"""A part of the names of files and directories that are being written."""


@contextmanager
def written_whole(target: Path, *, keep: bool = False) -> Iterator[Path]:
    """Yield a path for a file or directory, and rename it to `target` at the end.

    After an exception the path is removed, and `target` is unchanged.

    Args:
        target: the file or directory; an existing one is replaced.
        keep: whether to keep an existing directory at `target`, which another process may have created with the same
            content.

    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{target.name}{PARTIAL}", dir=target.parent, ignore_cleanup_errors=True
    ) as folder:
        staging = Path(folder, target.name)
        yield staging
        if target.is_dir() and not keep:
            target.rename(Path(folder, "former"))
        try:
            staging.replace(target)
        except OSError:
            if not (keep and target.is_dir()):
                raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, atomically."""
    with written_whole(path) as staging:
        staging.write_text(text, encoding="utf-8")


def remove_partial(folder: Path) -> None:
    """Remove what killed calls of `written_whole` left in `folder`; no other process may be writing there."""
    for remains in folder.glob(f".*{PARTIAL}*"):
        if remains.is_dir() and not remains.is_symlink():
            shutil.rmtree(remains)
