"""Local files of text or JSON as sources of text."""

import time
from collections.abc import Iterator
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import datasets

from revformers.data.cache import cache_directory, digest, file_digest
from revformers.data.loading import as_patterns, load_dataset, readable
from revformers.data.local_files import kind_of
from revformers.data.placed_records import Record, check_no_nul, is_compressed, placed_records
from revformers.data.section import DataSection
from revformers.data.source import MakeRow, RowMaker, Source, text_rows, with_others
from revformers.errors import UserError

READING = 2
"""Version of the reading of local files; raised when its results change, so that older cached ones are not used."""

SETTLED = 5 * 10**9
"""Nanoseconds after which every file system gives a change of a file another time."""

SHOWN = 100
"""Number of records of a local file of JSON that show its columns."""


class Content:
    """The content of the training files and of the validation files, which is named after one reading of all."""

    def __init__(self, *parts: list[Path]) -> None:
        self._parts = parts

    @cached_property
    def names(self) -> list[str]:
        """Names of the content of the training files and of the validation files."""
        return [digest(READING, [(kind_of(file), _digest_once(file)) for file in part]) for part in self._parts]

    def fingerprint(self, data: DataSection) -> str:
        """Return the hash of the content of all files and of the settings that select text in them."""
        return digest(*self.names, [data.text_column, data.validation_fraction, data.validation_documents])


def _digest_once(file: Path) -> str:
    """Return the digest of a file, which a process reads once unless the file changes.

    A file that was written within the last seconds is read each time, for its next change may bear the same time.
    """
    status = file.stat()
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < SETTLED:
        return file_digest(file)
    return _digest_of_version(
        file, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    )


@cache
def _digest_of_version(file: Path, version: tuple[int, ...]) -> str:
    return file_digest(file)


class TextFiles(Source):
    """Local .txt, .jsonl or .json files, compressed or not."""

    def __init__(self, data: DataSection, files: list[Path], held_out: list[Path]) -> None:
        super().__init__(data)
        self._parts = (files, held_out)
        self._content = Content(*self._parts)
        self.separated = kind_of(files[0]) != ".txt"

    def fingerprint(self) -> str:
        """Return the hash of the content of all files and of the settings that select text in them."""
        return self._content.fingerprint(self._data)

    def first_records(self) -> list[Record]:
        """Return the first records, which may differ in their columns."""
        return self._first[0]

    @cached_property
    def _first(self) -> list[list[Record]]:
        """The first records of the training files and of the validation files."""
        sources = (self._data.source, self._data.validation_source)
        first = [[record for _, record in islice(placed_records(files), SHOWN)] for files in self._parts]
        for source, files, records in zip(sources, self._parts, first, strict=True):
            if files and not records:
                raise UserError(f"{source} holds no records.")
        return first

    def _load(self, maker: RowMaker | None) -> tuple[Any, Any]:
        self.first_records()  # refuses files without records
        data = self._data
        as_lines = maker is None and not self.separated and data.text_column == "text" and not data.streaming
        training, held_out = (
            None
            if not files
            else self._read_lines(files)
            if as_lines and all(is_compressed(file) for file in files if file.suffix.lower() == ".gz")
            else self._read(number, maker or text_rows(data.text_column, data.setting("text_column")))
            for number, files in enumerate(self._parts)
        )
        return training, held_out

    def _read(self, number: int, maker: RowMaker) -> Any:
        files = self._parts[number]
        if self._data.streaming:
            return datasets.IterableDataset.from_generator(
                _rows_of, features=maker.features, gen_kwargs={"files": files, "make": maker.make}
            )
        try:
            with readable(self._data.source):
                return datasets.Dataset.from_generator(
                    _rows_of,
                    features=maker.features,
                    cache_dir=str(cache_directory() / "datasets"),
                    gen_kwargs={"files": files, "make": maker.make},
                    fingerprint=digest(datasets.__version__, self._content.names[number], maker.cache_key),
                )
        except UserError as error:
            raise with_others(error, placed_records(files), maker.make) from error

    def _read_lines(self, files: list[Path]) -> Any:
        """Return the lines of .txt files; `datasets` reads them ten times as fast as line by line.

        It takes a file whose name ends in .gz for a compressed one.
        """
        for file in files:
            check_no_nul(file)
        try:
            return load_dataset(
                self._data,
                self._data.source,
                "text",
                data_files=as_patterns(files),
                split="train",
                encoding="utf-8-sig",
                keep_linebreaks=True,
            )
        except UserError:
            for _ in placed_records(files):
                pass  # names the line
            raise


def _rows_of(files: list[Path], make: MakeRow) -> Iterator[Record]:
    for place, record in placed_records(files):
        yield make(place, record)
