"""Local files of text: which ones a path names."""

import os
from collections.abc import Iterator
from pathlib import Path

from revformers.errors import UserError

KINDS = (".txt", ".jsonl", ".json", ".parquet")
"""The kinds of files that can be read; all but .parquet also compressed, as in .jsonl.gz."""


def kind_of(path: str | Path) -> str:
    """Return the suffix of a file in lower case, without .gz."""
    name = Path(path).name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    return Path(name).suffix if suffix == ".parquet" else suffix


def find_files(source: str) -> list[Path]:
    """Return the file `source`, or the files of text in the directory `source`, ordered by path.

    Hidden files and directories, whose names begin with a dot, are left out. Links to directories are followed, and a
    directory with several names is read under one of them.

    Raises:
        FileNotFoundError: for a missing file.
        UserError: for another kind of file, a directory without files or with several kinds of them, a link to
            nothing, and files that are all empty.

    """
    path = Path(source).expanduser()
    files = [path]
    if path.is_dir():
        files = sorted(_files_in(path))
        if not files:
            raise UserError(f"The directory {source!r} holds no {', '.join(KINDS)} file.")
        if len({kind_of(file) for file in files}) > 1:
            raise UserError(f"The directory {source!r} mixes kinds of files; keep one of {', '.join(KINDS)} there.")
    elif not path.is_file():
        raise FileNotFoundError(f"There is no text file {source!r}.")
    elif kind_of(path) not in KINDS:
        raise UserError(f"{source!r} is not a supported kind of text file; give one of {', '.join(KINDS)}.")
    if not any(file.stat().st_size for file in files):
        raise UserError(f"{source} is empty.")
    return files


def _files_in(directory: Path) -> Iterator[Path]:
    """Yield the files of text in a directory and those below it; links are followed, but no directory is read twice."""
    seen = set()
    for folder, below, names in os.walk(directory, followlinks=True, onerror=_refuse):
        if (real := os.path.realpath(folder)) in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        for file in (Path(folder, name) for name in names if kind_of(name) in KINDS and not name.startswith(".")):
            if not file.exists():
                raise UserError(f"{file} is a link to a file that does not exist; remove it.")
            if file.is_file():
                yield file


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from error
