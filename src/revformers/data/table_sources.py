"""Sources of text that are data sets: the standard library, Parquet files, or a data set on the hub."""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import datasets
import pyarrow.parquet

from revformers.data import standard_library
from revformers.data.cache import digest
from revformers.data.columns import text_of
from revformers.data.loading import as_patterns, load_dataset
from revformers.data.local_sources import LocalFiles
from revformers.data.placed_records import Record
from revformers.data.section import DataSection
from revformers.data.source import Row, Rows, Source, text_rows
from revformers.private_api import fingerprint_of


class Tables(Source):
    """Data sets of the package `datasets`, whose columns have one type each."""

    @abstractmethod
    def _tables(self) -> tuple[Any, Any]:
        """Return the data sets of the training and the held-out records, or None for the latter."""

    def _place(self, held_out: bool, number: int) -> str:
        """Return the place of a record, counted from 0 in its data set, or of a stream in the order of reading."""
        return f"Record {number + 1} of {self._data.source}"

    def first_records(self) -> list[Record]:
        """Return the first record, which has all columns."""
        return list(islice(self._tables()[0], 1))

    def _load(self, rows: Rows | None) -> tuple[Any, Any]:
        training, held_out = (
            None if part is None else self._checked(part, partial(self._place, number == 1), rows)
            for number, part in enumerate(self._tables())
        )
        return training, held_out

    def _checked(self, part: Any, place: Callable[[int], str], rows: Rows | None) -> Any:
        if rows is not None:
            others = [name for name in part.column_names if name not in rows.columns]
            return part.map(
                partial(_row_at, row=rows.row, place=place),
                with_indices=True,
                remove_columns=others,
                features=rows.features,
                # not derived from the function, which holds this source
                new_fingerprint=digest(fingerprint_of(part), rows.name),
            )
        text = text_rows(self._data.text_column)
        if isinstance(part, datasets.IterableDataset):
            return part.map(partial(_row_at, row=text.row, place=place), with_indices=True)
        _check_texts(part, self._data.text_column, place)
        return part


class StandardLibrary(Tables):
    """The source and the documentation of the running Python's standard library, split by a hash of their paths."""

    def __init__(self, data: DataSection) -> None:
        super().__init__(data)
        self._files = standard_library.standard_library_files()

    def fingerprint(self) -> str:
        """Return the hash of all files and of the held-out fraction."""
        return digest("stdlib", standard_library.fingerprint(self._files), self._data.validation_fraction)

    def _tables(self) -> tuple[Any, Any]:
        training, validation = (
            datasets.Dataset.from_dict({self._data.text_column: [file.text for file in files]})
            for files in standard_library.split_by_file(self._files, self._data.validation_fraction)
        )
        return training, validation


class ParquetFiles(Tables, LocalFiles):
    """Local .parquet files."""

    def _tables(self) -> tuple[Any, Any]:
        training, held_out = (
            load_dataset(
                self._data,
                ", ".join(map(str, files)),
                "parquet",
                data_files=as_patterns(files),
                split="train",
            )
            if files
            else None
            for files in self._parts
        )
        return training, held_out

    def _place(self, held_out: bool, number: int) -> str:
        if self._data.streaming:
            return super()._place(held_out, number)
        for file in self._parts[held_out]:
            records = pyarrow.parquet.read_metadata(file).num_rows
            if number < records:
                return f"Record {number + 1} of {file}"
            number -= records
        raise IndexError(number)


class HubDataset(Tables):
    """A data set on the Hugging Face hub."""

    def __init__(self, data: DataSection) -> None:
        super().__init__(data)
        splits = (data.split, data.validation_split)
        self._loaded = [
            load_dataset(data, data.source, data.source, data.subset, split=split, revision=data.revision)
            if split
            else None
            for split in splits
        ]

    def fingerprint(self) -> str:
        """Return the hash of the data sets' fingerprints and of the settings that select text in them."""
        data = self._data
        return digest(
            [fingerprint_of(part) for part in self._loaded if part is not None],
            [data.text_column, data.validation_fraction, data.validation_documents],
        )

    def _tables(self) -> tuple[Any, Any]:
        training, held_out = self._loaded
        return training, held_out

    def _place(self, held_out: bool, number: int) -> str:
        split = self._data.validation_split if held_out else self._data.split
        return f"Record {number + 1} of {self._data.source} ({split})"


def _row_at(record: Record, number: int, row: Row, place: Callable[[int], str]) -> Record:
    return row(_LazyPlace(place, number), record)


class _LazyPlace:
    """The place of a record, which is looked up only for a message."""

    def __init__(self, place: Callable[[int], str], number: int) -> None:
        self._place, self._number = place, number

    def __str__(self) -> str:
        return self._place(self._number)


def _check_texts(dataset: Any, column: str, place: Callable[[int], str]) -> None:
    """Raise UserError for the first record of a stored data set that holds no text in `column`."""
    feature = dataset.features.get(column)
    if getattr(feature, "dtype", None) not in ("string", "large_string"):
        for number, record in enumerate(dataset):
            text_of(place(number), record, column)
        return
    # A column of text can still hold nulls.
    number = 0
    for batch in dataset.select_columns(column).with_format("arrow").iter(10_000):
        texts = batch.column(column)
        if texts.null_count:
            text_of(place(number + texts.to_pylist().index(None)), {column: None}, column)
        number += len(texts)
