"""Data sets that the package `datasets` loads, with errors that name the text."""

import glob
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets

from revformers.data.cache import cache_directory
from revformers.data.columns import wrong_byte
from revformers.data.section import DataSection
from revformers.errors import UserError, reason_of


def load_dataset(data: DataSection, what: str, *arguments: str | None, **options: Any) -> Any:
    """Return ``datasets.load_dataset(...)``, a Dataset or an IterableDataset; raise UserError if it is empty."""
    with readable(what):
        loaded = datasets.load_dataset(
            *arguments, streaming=data.streaming, cache_dir=str(cache_directory() / "datasets"), **options
        )
        empty = next(iter(loaded), None) is None if data.streaming else len(loaded) == 0
    if empty:
        raise UserError(f"{what} holds no records.")
    return loaded


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Convert the errors of `datasets` into UserError; `what` names the text."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(
            f"{what} holds bytes that are not text in UTF-8 ({wrong_byte(error)}); write its text in UTF-8."
        ) from error
    # `datasets` raises RuntimeError for a data set with a loading script, which it no longer runs
    except (datasets.exceptions.DatasetsError, OSError, RuntimeError, StopIteration, TypeError, ValueError) as error:
        if isinstance(cause := error.__cause__ or error, UserError):
            raise cause from None
        raise UserError(f"{what} cannot be read: {reason_of(cause) or 'it holds no records'}.") from error


class ReadableDocuments:
    """The documents of a data set, which can be read repeatedly, with errors of reading that name the text."""

    def __init__(self, documents: Iterable[str], what: str) -> None:
        self._documents, self._what = documents, what

    def __iter__(self) -> Iterator[str]:
        with readable(self._what):
            yield from self._documents


def as_patterns(files: list[Path]) -> list[str]:
    """Return patterns that match only these files: `datasets` takes a path for a pattern."""
    return [glob.escape(str(file)) for file in files]
