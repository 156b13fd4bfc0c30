"""Data sets that the package `datasets` loads, with errors that name the text."""

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets

from revformers.data.cache import cache_directory
from revformers.data.section import DataSection
from revformers.errors import UserError, reason_of


def load_dataset(data: DataSection, what: str, *arguments: str | None, **options: Any) -> Any:
    """Return ``datasets.load_dataset(...)``, a Dataset or an IterableDataset; raise UserError if it is empty."""
    with readable(what):
        loaded = datasets.load_dataset(
            *arguments, streaming=data.streaming, cache_dir=str(cache_directory() / "datasets"), **options
        )
        first = next(iter(loaded), None)
    if first is None:
        raise UserError(f"{what} is empty.")
    return loaded


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Convert the errors of `datasets` into UserError; `what` names the text."""
    try:
        yield
    # `datasets` raises RuntimeError for a data set with a loading script, which it no longer runs
    except (datasets.exceptions.DatasetsError, OSError, RuntimeError, StopIteration, TypeError, ValueError) as error:
        if isinstance(cause := error.__cause__ or error, UserError):
            raise cause from None
        raise UserError(f"{what} cannot be read: {reason_of(cause) or 'it holds no records'}.") from error


def as_patterns(files: list[Path]) -> list[str]:
    """Return patterns that match only these files: `datasets` takes a path for a pattern."""
    return [glob.escape(str(file)) for file in files]
