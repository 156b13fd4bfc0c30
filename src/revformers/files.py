"""Files and directories that are there whole or not at all."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_whole(target: Path, *, keep: bool = False) -> Iterator[Path]:
    """Give a path to write a file or make a directory at, and rename that to `target` at the end.

    After an exception nothing is left, and `target` is what it was.

    Args:
        target: the file or directory, which is replaced where it exists.
        keep: whether a directory that another process has put there meanwhile stays, as one that holds the same.

    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{target.name}.partial-", dir=target.parent, ignore_cleanup_errors=True
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
    """Write `value` to `path` as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with written_whole(path) as staging:
        staging.write_text(text, encoding="utf-8")
