"""Sources of text: the standard library, local files, or a data set on the hub."""

import glob
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet

from revformers.data import standard_library
from revformers.data.cache import cache_directory, digest, file_digest
from revformers.data.local_files import KINDS, Record, find_files, kind_of, placed_records, text_of
from revformers.data.section import DataSection
from revformers.errors import UserError, reason_of
from revformers.private_api import fingerprint_of

READING = 1
"""Version of the reading of local files; raised when its results change, so that older cached ones are not used."""

SHOWN = 100
"""Number of records of a local file of JSON that show its columns."""

Documents = Iterable[str]

Row = Callable[[object, Record], Record]
"""Makes a row from a place, whose str() is such as "Line 3 of a.jsonl", and the record there, or raises UserError."""


@dataclass(frozen=True)
class Split:
    """Training and validation documents; both can be iterated over repeatedly.

    Attributes:
        training: texts to train on.
        validation: held-out texts.
        separated: whether each text is a document of its own; False for lines of a running text.

    """

    training: Documents
    validation: Documents
    separated: bool


@dataclass(frozen=True)
class Rows:
    """What to make of the records of a source.

    Attributes:
        row: makes a row from a record.
        columns: the columns of a row.
        name: a name for `row` and all that it depends on, serialisable as JSON.
        features: the types of the columns; None to infer them.

    """

    row: Row
    columns: tuple[str, ...]
    name: Any
    features: datasets.Features | None = None


class Source(ABC):
    """A body of text that can identify its content without loading all of it into memory.

    Attributes:
        separated: whether each record is a document of its own; False for lines of .txt files.

    """

    separated = True

    def __init__(self, data: DataSection) -> None:
        self._data = data

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a name for the content; other text, or another split of the same text, has another name."""

    @abstractmethod
    def first_records(self) -> list[Record]:
        """Return one record or a few, which show the columns."""

    @abstractmethod
    def _load(self, rows: Rows | None) -> tuple[Any, Any]:
        """Return data sets of rows, and those held out, or None for the latter if they are to be split off.

        Args:
            rows: what to make of the records; None for the text in their column of text, which is checked.

        """

    def rows(self, rows: Rows) -> tuple[Any, Any]:
        """Return the data sets of the training and the validation rows.

        Raises:
            UserError: if a record cannot be used, or if there are too few records to hold some out.

        """
        return _hold_out(*self._load(rows), self._data)

    def documents(self) -> Documents:
        """Return all texts of the training part, without holding any out.

        Raises:
            UserError: if a record has no text.

        """
        return self._load(None)[0][self._data.text_column]

    def split(self) -> Split:
        """Return the documents, split into training and validation.

        Raises:
            UserError: if a record has no text, or there is too little text. Of a streamed source, records are checked
                while they are read.

        """
        training, held_out = _hold_out(*self._load(None), self._data)
        column = self._data.text_column
        return Split(training[column], held_out[column], self.separated)


def open_source(data: DataSection) -> Source:
    """Return the source that the data section of a recipe describes.

    Raises:
        FileNotFoundError: for a missing local file.
        UserError: for a directory without text files, or with several kinds of them.

    """
    if data.streaming and data.tokenizer is None:
        raise UserError("data.streaming needs a tokenizer that is already trained; name one in data.tokenizer.")
    if data.source == "stdlib":
        _refuse(
            data, "the standard library", "streaming", "subset", "revision", "validation_source", "validation_split"
        )
        return StandardLibrary(data)
    if _is_local(data.source):
        _refuse(data, "local files", "subset", "revision", "validation_split")
        return open_files(data)
    _refuse(data, "a hub data set", "validation_source")
    return HubDataset(data)


def content_of(data: DataSection) -> str | None:
    """Return a name for the content of local data, by which a resumed run knows it again; None where there is none.

    A stream is not read before it is trained on, and the fingerprint of a hub data set depends on its download.
    """
    if data.streaming or not (data.source == "stdlib" or _is_local(data.source)):
        return None
    return open_source(data).fingerprint()


def open_files(data: DataSection) -> Source:
    """Return the source in the local file or directory that `data.source` names.

    Raises:
        FileNotFoundError: for a missing local file.
        UserError: for files that cannot be used.

    """
    files = find_files(data.source)
    held_out = find_files(data.validation_source) if data.validation_source else []
    if held_out and kind_of(held_out[0]) != kind_of(files[0]):
        raise UserError("data.source and data.validation_source must be files of one kind.")
    training, validation = ({file.resolve() for file in part} for part in (files, held_out))
    if training != validation and (both := training & validation):  # the same text on purpose is a choice
        raise UserError(f"{min(both)} is in data.source and in data.validation_source; leave it in one of them.")
    return (ParquetFiles if kind_of(files[0]) == ".parquet" else TextFiles)(data, files, held_out)


class LocalFiles(Source):
    """Local files, of one kind."""

    def __init__(self, data: DataSection, files: list[Path], held_out: list[Path]) -> None:
        super().__init__(data)
        self._parts = (files, held_out)

    @cached_property
    def _digests(self) -> list[list[tuple[str, str]]]:
        """The kinds and the digests of the files, which take a reading of all of them."""
        return [[(kind_of(file), file_digest(file)) for file in part] for part in self._parts]

    def fingerprint(self) -> str:
        """Return the hash of the content of all files and of the settings that select text in them."""
        data = self._data
        return digest(*self._digests, [data.text_column, data.validation_fraction, data.validation_documents])


class TextFiles(LocalFiles):
    """Local .txt, .jsonl or .json files, compressed or not."""

    def __init__(self, data: DataSection, files: list[Path], held_out: list[Path]) -> None:
        super().__init__(data, files, held_out)
        self.separated = kind_of(files[0]) != ".txt"

    def first_records(self) -> list[Record]:
        """Return the first records, which may differ in their columns."""
        return [record for _, record in islice(placed_records(self._parts[0]), SHOWN)]

    def _load(self, rows: Rows | None) -> tuple[Any, Any]:
        training, held_out = (
            self._read(number, rows or _text_rows(self._data.text_column)) if files else None
            for number, files in enumerate(self._parts)
        )
        return training, held_out

    def _read(self, number: int, rows: Rows) -> Any:
        files = self._parts[number]
        if next(placed_records(files), None) is None:
            raise UserError(f"{', '.join(map(str, files))} holds no records.")
        if self._data.streaming:
            return datasets.IterableDataset.from_generator(
                _rows_of, features=rows.features, gen_kwargs={"files": files, "row": rows.row}
            )
        if not self.separated and rows.columns == ("text",):
            return self._read_lines(files)
        with _readable(self._data.source):
            return datasets.Dataset.from_generator(
                _rows_of,
                features=rows.features,
                cache_dir=str(cache_directory() / "datasets"),
                gen_kwargs={"files": files, "row": rows.row},
                fingerprint=digest(READING, datasets.__version__, self._digests[number], rows.name),
            )

    def _read_lines(self, files: list[Path]) -> Any:
        """Return the lines of .txt files; `datasets` reads them ten times as fast as line by line."""
        for file in files:
            next(placed_records([file]), None)  # the beginning shows another encoding
        try:
            return _load_dataset(
                self._data,
                self._data.source,
                "text",
                data_files=_as_patterns(files),
                split="train",
                encoding="utf-8-sig",
                keep_linebreaks=True,
            )
        except UserError:
            for _ in placed_records(files):
                pass  # names the line
            raise


class _Tables(Source):
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
                new_fingerprint=digest(READING, fingerprint_of(part), rows.name),
            )
        text = _text_rows(self._data.text_column)
        if isinstance(part, datasets.IterableDataset):
            return part.map(partial(_row_at, row=text.row, place=place), with_indices=True)
        _check_texts(part, self._data.text_column, place)
        return part


class StandardLibrary(_Tables):
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


class ParquetFiles(_Tables, LocalFiles):
    """Local .parquet files."""

    def _tables(self) -> tuple[Any, Any]:
        training, held_out = (
            _load_dataset(
                self._data,
                ", ".join(map(str, files)),
                "parquet",
                data_files=_as_patterns(files),
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


class HubDataset(_Tables):
    """A data set on the Hugging Face hub."""

    def __init__(self, data: DataSection) -> None:
        super().__init__(data)
        splits = (data.split, data.validation_split)
        self._loaded = [
            _load_dataset(data, data.source, data.source, data.subset, split=split, revision=data.revision)
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


def _as_patterns(files: list[Path]) -> list[str]:
    """Return patterns that match only these files: `datasets` takes a path for a pattern."""
    return [glob.escape(str(file)) for file in files]


def _rows_of(files: list[Path], row: Row) -> Iterator[Record]:
    for place, record in placed_records(files):
        yield row(place, record)


def _row_at(record: Record, number: int, row: Row, place: Callable[[int], str]) -> Record:
    return row(_LazyPlace(place, number), record)


class _LazyPlace:
    """The place of a record, which is looked up only for a message."""

    def __init__(self, place: Callable[[int], str], number: int) -> None:
        self._place, self._number = place, number

    def __str__(self) -> str:
        return self._place(self._number)


def _text_rows(column: str) -> Rows:
    features = datasets.Features({column: datasets.Value("string")})
    return Rows(partial(_text_row, column=column), (column,), ["text", column], features)


def _text_row(place: object, record: Record, column: str) -> Record:
    return {column: text_of(place, record, column)}


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


def _refuse(data: DataSection, kind: str, *fields: str) -> None:
    """Raise UserError if one of `fields` is set, which do not apply to this kind of source."""
    for field in fields:
        if getattr(data, field):
            raise UserError(f"data.{field} does not apply to {kind} ({data.source}); leave it out.")


def _is_local(source: str) -> bool:
    return kind_of(source) in KINDS or Path(source).expanduser().exists()


def _load_dataset(data: DataSection, what: str, *arguments: str | None, **options: Any) -> Any:
    """Return ``datasets.load_dataset(...)``, a Dataset or an IterableDataset; raise UserError if it is empty."""
    with _readable(what):
        loaded = datasets.load_dataset(
            *arguments, streaming=data.streaming, cache_dir=str(cache_directory() / "datasets"), **options
        )
        first = next(iter(loaded), None)
    if first is None:
        raise UserError(f"{what} is empty.")
    return loaded


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Convert the errors of `datasets` into UserError; `what` names the text."""
    try:
        yield
    # `datasets` raises RuntimeError for a data set with a loading script, which it no longer runs
    except (datasets.exceptions.DatasetsError, OSError, RuntimeError, StopIteration, TypeError, ValueError) as error:
        if isinstance(cause := error.__cause__ or error, UserError):
            raise cause from None
        raise UserError(f"{what} cannot be read: {reason_of(cause) or 'it holds no records'}.") from error


def _hold_out(training: Any, held_out: Any, data: DataSection) -> tuple[Any, Any]:
    """Return training and validation records: hold out the first records if there is no separate validation set."""
    if data.streaming:
        if held_out is None:
            if data.validation_documents is None:
                raise UserError(
                    "The length of a streamed source is unknown, so no fraction of it can be held out; set "
                    "data.validation_documents."
                )
            held_out = training.take(data.validation_documents)
            training = training.skip(data.validation_documents)
        training = training.shuffle(seed=0, buffer_size=data.shuffle_buffer)
    elif held_out is None:
        number = data.validation_documents or max(1, round(data.validation_fraction * len(training)))
        if number >= len(training):
            raise UserError(
                f"{data.source} holds {len(training)} records, too few to hold "
                f"{number} out for validation; add text, or name other text in data.validation_source."
            )
        held_out = training.select(range(number))
        training = training.select(range(number, len(training)))
    return training, held_out
