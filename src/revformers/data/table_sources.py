"""Sources of text that are data sets: the standard library, or a data set on the hub."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import islice
from typing import Any

import datasets
import pyarrow as pa

from revformers.data import standard_library
from revformers.data.cache import digest
from revformers.data.columns import text_of, wrong_byte
from revformers.data.loading import load_dataset
from revformers.data.placed_records import Record
from revformers.data.section import DataSection
from revformers.data.source import MakeRow, RowMaker, Source, text_rows, with_others
from revformers.errors import UserError
from revformers.private_api import fingerprint_of


class Tables(Source):
    """Data sets of the package `datasets`, whose columns have one type each."""

    typed = True

    @abstractmethod
    def _tables(self) -> tuple[Any, Any]:
        """Return the data sets of the training and the held-out records, or None for the latter."""

    def _place(self, held_out: bool, number: int) -> str:
        """Return the place of a record, counted from 0 in its data set, or of a stream in the order of reading."""
        return f"Record {number + 1} of {self._data.source}"

    @cached_property
    def _parts_loaded(self) -> tuple[Any, Any]:
        return self._tables()

    def first_records(self) -> list[Record]:
        """Return the first record, which has all columns."""
        training, _ = self._parts_loaded
        with _naming_undecodable(training, partial(self._place, False)):
            return list(islice(training, 1))

    def _load(self, maker: RowMaker | None) -> tuple[Any, Any]:
        training, held_out = (
            None if part is None else self._checked(part, partial(self._place, number == 1), maker)
            for number, part in enumerate(self._parts_loaded)
        )
        return training, held_out

    def _checked(self, part: Any, place: Callable[[int], str], maker: RowMaker | None) -> Any:
        make = (maker or text_rows(self._data.text_column, self._data.setting("text_column"))).make
        if isinstance(part, datasets.IterableDataset):
            return part.map(partial(_row_at, make=make, place=place), with_indices=True)
        with _naming_undecodable(part, place):
            try:
                return self._stored(part, place, maker)
            except UserError as error:
                records = ((_LazyPlace(place, number), record) for number, record in enumerate(part))
                raise with_others(error, records, make) from error

    def _stored(self, part: Any, place: Callable[[int], str], maker: RowMaker | None) -> Any:
        if maker is not None:
            others = [name for name in part.column_names if name not in maker.features]
            return part.map(
                partial(_row_at, make=maker.make, place=place),
                with_indices=True,
                remove_columns=others,
                features=maker.features,
                # not derived from the function, which holds this source
                new_fingerprint=digest(fingerprint_of(part), maker.cache_key),
            )
        _check_texts(part, self._data.text_column, place, self._data.setting("text_column"))
        return part


class StandardLibrary(Tables):
    """The source and the documentation of the running Python's standard library, split by a hash of their paths."""

    def __init__(self, data: DataSection) -> None:
        super().__init__(data)
        self._files = standard_library.standard_library_files(setting=data.setting("source"))

    def fingerprint(self) -> str:
        """Return the hash of all files and of the held-out fraction."""
        return digest("stdlib", standard_library.fingerprint(self._files), self._data.validation_fraction)

    def _tables(self) -> tuple[Any, Any]:
        training, validation = (
            datasets.Dataset.from_dict({self._data.text_column: [file.text for file in files]})
            for files in standard_library.split_by_file(self._files, self._data.validation_fraction)
        )
        return training, validation


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


def _row_at(record: Record, number: int, make: MakeRow, place: Callable[[int], str]) -> Record:
    return make(_LazyPlace(place, number), record)


@contextmanager
def _naming_undecodable(dataset: Any, place: Callable[[int], str]) -> Iterator[None]:
    """Convert the UnicodeDecodeError of a stored data set, whose columns of text may hold any bytes, into UserError."""
    try:
        yield
    except UnicodeDecodeError:
        for number, record in enumerate(dataset.with_format("arrow")):
            for column in record.column_names:
                try:
                    record.column(column).to_pylist()
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{place(number)} holds bytes in its column {column!r} that are not text in UTF-8 "
                        f"({wrong_byte(error)}); write the text in UTF-8."
                    ) from error
        raise


class _LazyPlace:
    """The place of a record, which is looked up only for a message."""

    def __init__(self, place: Callable[[int], str], number: int) -> None:
        self._place, self._number = place, number

    def __str__(self) -> str:
        return self._place(self._number)


def _check_texts(dataset: Any, column: str, place: Callable[[int], str], setting: str) -> None:
    """Raise UserError for the first record of a stored data set that holds no text in `column`."""
    feature = dataset.features.get(column)
    if getattr(feature, "dtype", None) not in ("string", "large_string"):
        for number, record in enumerate(dataset):
            text_of(_LazyPlace(place, number), record, column, setting)
        return
    # A column of text can still hold nulls, and bytes that are not text.
    number = 0
    for batch in dataset.select_columns(column).with_format("arrow").iter(10_000):
        texts = batch.column(column)
        try:
            texts.validate(full=True)
        except pa.ArrowInvalid:
            texts.to_pylist()  # raises UnicodeDecodeError
        if texts.null_count:
            text_of(place(number + texts.to_pylist().index(None)), {column: None}, column, setting)
        number += len(texts)
