"""A source of text: its records, as rows or as documents to train on and to hold out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import datasets

from revformers.data.columns import text_of
from revformers.data.loading import ReadableDocuments
from revformers.data.placed_records import Record
from revformers.data.section import DataSection
from revformers.errors import UserError, counted

Documents = Iterable[str]

MakeRow = Callable[[object, Record], Record]
"""Makes a row from a place, whose str() is such as "Line 3 of a.jsonl", and the record there, or raises UserError."""


SHOWN_FAULTS = 2
"""Number of records whose places are given besides the first that cannot be used."""


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
class RowMaker:
    """What to make of the records of a source.

    Attributes:
        make: makes a row from a record.
        cache_key: a name for `make` and all that it depends on, serialisable as JSON.
        features: the columns of a row and their types.

    """

    make: MakeRow
    cache_key: Any
    features: datasets.Features


class Source(ABC):
    """A body of text that can identify its content without loading all of it into memory.

    Attributes:
        separated: whether each record is a document of its own; False for lines of .txt files.
        typed: whether columns have one type each, so that a record holds null for what it lacks.

    """

    separated = True
    typed = False

    def __init__(self, data: DataSection) -> None:
        self._data = data

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a name for the content; other text, or another split of the same text, has another name."""

    @abstractmethod
    def first_records(self) -> list[Record]:
        """Return one record or a few, which show the columns."""

    @abstractmethod
    def _load(self, maker: RowMaker | None) -> tuple[Any, Any]:
        """Return data sets of rows, and those held out, or None for the latter if they are to be split off.

        Args:
            maker: what to make of the records; None for the text in their column of text, which is checked.

        """

    def rows(self, maker: RowMaker) -> tuple[Any, Any]:
        """Return the data sets of the training and the validation rows.

        Raises:
            UserError: if a record cannot be used, or if there are too few records to hold some out.

        """
        return hold_out(*self._load(maker), self._data, seed=0)

    def documents(self) -> Documents:
        """Return all texts of the training part, without holding any out.

        Raises:
            UserError: if a record has no text.

        """
        return self._documents(self._load(None)[0])

    def split(self, seed: int = 0) -> Split:
        """Return the documents, split into training and validation.

        Args:
            seed: the seed of the order of a stream, which is the same whenever it is read.

        Raises:
            UserError: if a record has no text, or there is too little text. Of a streamed source, records are checked
                while they are read.

        """
        training, held_out = hold_out(*self._load(None), self._data, seed)
        return Split(self._documents(training), self._documents(held_out), self.separated)

    def _documents(self, part: Any) -> Documents:
        column = self._data.text_column
        texts = _StreamedTexts(part, column) if isinstance(part, datasets.IterableDataset) else part[column]
        return ReadableDocuments(texts, self._data.source)


class _StreamedTexts:
    """The texts of a stream, which are the same in every process; plain iteration gives a data loader's worker a part.

    The blocks that are made of them are one stream, which one worker reads.
    """

    def __init__(self, part: datasets.IterableDataset, column: str) -> None:
        self._part, self._column = part, column

    def __iter__(self) -> Iterator[str]:
        for batch in self._part.iter(batch_size=1):
            yield from batch[self._column]


def text_rows(column: str, setting: str) -> RowMaker:
    """Return the maker of rows of the text in a column, which is checked; `setting` names the column."""
    features = datasets.Features({column: datasets.Value("string")})
    return RowMaker(partial(_text_row, column=column, setting=setting), ["text", column], features)


def _text_row(place: object, record: Record, column: str, setting: str) -> Record:
    return {column: text_of(place, record, column, setting)}


def with_others(first: UserError, records: Iterable[tuple[object, Record]], make: MakeRow) -> UserError:
    """Return the fault of the first record that makes no row, with the number and the places of the others.

    Args:
        first: the fault.
        records: all records after their places.
        make: what raised the fault.

    """
    others = -1
    places: list[str] = []
    try:
        for place, record in records:
            try:
                make(place, record)
            except UserError:
                others += 1
                if 0 < others <= SHOWN_FAULTS:
                    places.append(str(place))
    except UserError:  # the rest of a file cannot be read; the fault that is known comes first
        return first
    if others < 1:
        return first
    number, named = counted(others, "other record"), " and ".join(places)
    which = named if others <= SHOWN_FAULTS else f"{named} among them"
    return UserError(f"{first} {number} cannot be used either: {which}.")


def hold_out(training: Any, held_out: Any, data: DataSection, seed: int) -> tuple[Any, Any]:
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
        training = training.shuffle(seed=seed, buffer_size=data.shuffle_buffer)
    elif held_out is None:
        number = data.validation_documents or max(1, round(data.validation_fraction * len(training)))
        if number >= len(training):
            other = data.setting("validation_source")
            raise UserError(
                f"{data.source} holds {counted(len(training), 'record')}, too few to hold {number} out for validation; "
                f"add text{f', or name other text in {other}' if other else ''}."
            )
        held_out = training.select(range(number))
        training = training.select(range(number, len(training)))
    return training, held_out
