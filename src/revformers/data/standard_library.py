"""The built-in corpus: the running Python's standard library, which needs no download."""

import hashlib
import importlib
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from revformers.data.cache import digest
from revformers.errors import UserError

EXCLUDED = frozenset(
    {
        "__pycache__",
        "dist-packages",  # installed packages are not the standard library
        "encodings",  # mostly tables of code points, from which a model learns only counting
        "ensurepip",
        "idle_test",
        "idlelib",
        "lib-dynload",
        "lib2to3",
        "pydoc_data",  # read as documentation below, without the quotes and escapes of Python source
        "site-packages",
        "test",
        "tests",
        "turtledemo",
    }
)
"""Names of directories whose files are left out."""


@dataclass(frozen=True)
class StandardLibraryFile:
    """One document of the corpus: a relative path with forward slashes, and the text."""

    path: str
    text: str


def standard_library_files(root: Path | None = None, setting: str = "data.source") -> list[StandardLibraryFile]:
    """Return the .py files under `root` and Python's language reference, ordered by path.

    Args:
        root: the directory of the standard library; by default that of the running Python. The reference is read only
            by default.
        setting: what messages call the setting that names this source.

    Raises:
        UserError: if there is no file, as in a Python whose library is a zip archive.

    """
    directory = root or Path(sysconfig.get_paths()["stdlib"])
    files = list(_source_files(directory))
    if root is None:
        files += _language_reference()
    if not files:
        raise UserError(
            f"The standard library of this Python has no source files under {str(directory)!r}; name a text file, a "
            f"directory or a hub data set in {setting}."
        )
    return sorted(files, key=lambda file: file.path)


def split_by_file(
    files: list[StandardLibraryFile], validation_fraction: float
) -> tuple[list[StandardLibraryFile], list[StandardLibraryFile]]:
    """Return the training and the validation files; each file is assigned by a hash of its path.

    A file therefore stays in its part when other files are added or removed, as between two versions of Python.
    """
    training: list[StandardLibraryFile] = []
    validation: list[StandardLibraryFile] = []
    for file in files:
        position = int.from_bytes(hashlib.sha256(file.path.encode()).digest()[:8]) / 2**64
        (validation if position < validation_fraction else training).append(file)
    return training, validation


def fingerprint(files: list[StandardLibraryFile]) -> str:
    """Return a name for these files and their text."""
    return digest([(file.path, hashlib.sha256(file.text.encode()).hexdigest()) for file in files])


def _source_files(directory: Path) -> Iterator[StandardLibraryFile]:
    for path in directory.rglob("*.py"):
        relative = path.relative_to(directory)
        # _sysconfigdata holds the paths of the machine that Python was built on.
        if EXCLUDED.intersection(relative.parts) or relative.name.startswith("_sysconfigdata"):
            continue
        with tokenize.open(path) as file:  # uses the encoding that the first lines of a source may declare
            text = file.read()
        if text.strip():
            yield StandardLibraryFile(relative.as_posix(), text)


def _language_reference() -> list[StandardLibraryFile]:
    """Return the topics that ``help()`` shows, or an empty list for a Python without them."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ModuleNotFoundError:
        return []
    return [StandardLibraryFile(f"pydoc_data/topics/{name}.txt", text) for name, text in topics.items()]
