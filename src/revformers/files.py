"""Atomic writing of files and directories, and the check of a place before the work that it is for."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from revformers.errors import UserError

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


def check_place(path: Path, *, directory: bool = False) -> None:
    """Raise UserError unless a file, or else a directory, can be written at `path`.

    A few bytes are written to the folder that will hold it, and removed, because neither the rights of a folder nor its
    file system say whether it takes them. Call this before the work whose result is written there.

    Args:
        path: the file or directory, which need not exist, and neither need the folders above it.
        directory: whether a directory is to be written.

    """
    try:
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path} is a symbolic link to {os.readlink(path)}, which does not exist.")
        if path.is_dir() and not directory:
            raise UserError(f"{path} is a directory; name a file in it.")
        if path.exists() and not path.is_dir():
            if directory:
                raise UserError(f"{path} is a file; name a directory.")
            if not path.is_file():
                return  # a device, such as /dev/null, or a pipe
        folder = path.absolute() if path.is_dir() else path.absolute().parent
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise UserError(f"Nothing can be written to {path}, because {folder} is a file.")
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE_SIZE))
    except OSError as error:
        raise UserError(f"Nothing can be written to {path}: {error.strerror or error}.") from error


PROBE_SIZE = 4096
"""Bytes that show whether a file system has room at all."""


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as JSON, atomically; numbers that are not finite, which JSON lacks, as null."""
    write_text(path, json.dumps(_with_nulls(value), indent=2, allow_nan=False) + "\n")


def _with_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_nulls(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_with_nulls(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8: atomically to a file, directly to a device or a pipe.

    Raises:
        IsADirectoryError: if `path` is a directory, which is kept.

    """
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    with written_whole(path) as staging:
        staging.write_text(text, encoding="utf-8")


def remove_partial(folder: Path) -> None:
    """Remove what killed calls of `written_whole` left in `folder`; no other process may be writing there."""
    for remains in folder.glob(f".*{PARTIAL}*"):
        if remains.is_dir() and not remains.is_symlink():
            shutil.rmtree(remains)
