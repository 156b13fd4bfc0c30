"""Local files of text: which ones a path names."""

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

    Hidden files and directories, whose names begin with a dot, are left out.

    Raises:
        FileNotFoundError: for a missing file.
        UserError: for another kind of file, a directory without files or with several kinds of them, and files that
            are all empty.

    """
    path = Path(source).expanduser()
    files = [path]
    if path.is_dir():
        files = sorted(
            file
            for file in path.rglob("*")
            if kind_of(file) in KINDS and not _hidden(file.relative_to(path)) and file.is_file()
        )
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


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)
