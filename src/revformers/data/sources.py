"""Sources of text: the standard library, local files, or a data set on the hub."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from revformers.data import standard_library
from revformers.data.cache import cache_directory, digest, file_digest
from revformers.data.section import DataSection
from revformers.errors import UserError
from revformers.private_api import fingerprint_of

LOADERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
"""Loader of `datasets` for each kind of local file."""

Documents = Iterable[str | None]


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
    def _load(self) -> tuple[Any, Any]:
        """Return the records and the held-out records, or None for the latter if they are to be split off."""

    def records(self) -> tuple[Any, Any]:
        """Return the data sets of the training and the validation documents, with all their columns.

        Raises:
            UserError: if there are too few records to hold some out.

        """
        return _hold_out(*self._load(), self._data)

    def split(self) -> Split:
        """Return the documents, split into training and validation.

        Raises:
            UserError: if there is no text column, or too little text.

        """
        training, held_out = self._load()
        column = self._data.text_column
        for part in (training, held_out):
            if part is not None and (first := next(iter(part), None)) and column not in first:
                raise UserError(
                    f"{self._data.source} has no column {column!r}; its columns are {', '.join(first)}. Set "
                    f"data.text_column to the one that holds the text."
                )
        training, held_out = _hold_out(training, held_out, self._data)
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
        return LocalFiles(data)
    _refuse(data, "a hub data set", "validation_source")
    return HubDataset(data)


class StandardLibrary(Source):
    """The source and the documentation of the running Python's standard library, split by a hash of their paths."""

    def __init__(self, data: DataSection) -> None:
        super().__init__(data)
        self._files = standard_library.standard_library_files()

    def fingerprint(self) -> str:
        """Return the hash of all files and of the held-out fraction."""
        return digest("stdlib", standard_library.fingerprint(self._files), self._data.validation_fraction)

    def _load(self) -> tuple[Any, Any]:
        training, validation = (
            datasets.Dataset.from_dict({self._data.text_column: [file.text for file in files]})
            for files in standard_library.split_by_file(self._files, self._data.validation_fraction)
        )
        return training, validation


class LocalFiles(Source):
    """Local .txt, .jsonl, .json or .parquet files."""

    def __init__(self, data: DataSection) -> None:
        super().__init__(data)
        self._training_files = _local_files(data.source)
        self._validation_files = _local_files(data.validation_source) if data.validation_source else []
        suffix = self._training_files[0].suffix
        if self._validation_files and self._validation_files[0].suffix != suffix:
            raise UserError("data.source and data.validation_source must be files of one kind.")
        self.separated = suffix != ".txt"

    def fingerprint(self) -> str:
        """Return the hash of the content of all files and of the settings that select text in them."""
        data = self._data
        return digest(
            [(file.suffix, file_digest(file)) for file in self._training_files],
            [(file.suffix, file_digest(file)) for file in self._validation_files],
            [data.text_column, data.validation_fraction, data.validation_documents],
        )

    def all_records(self) -> Any:
        """Return all records, or all lines of .txt files, without holding any out."""
        return self._read(self._training_files)

    def _load(self) -> tuple[Any, Any]:
        return self.all_records(), self._read(self._validation_files) if self._validation_files else None

    def _read(self, files: list[Path]) -> Any:
        options = {} if self.separated else {"keep_linebreaks": True}
        loader = LOADERS[files[0].suffix]
        return _load_dataset(self._data, loader, data_files=[str(file) for file in files], split="train", **options)


class HubDataset(Source):
    """A data set on the Hugging Face hub."""

    def __init__(self, data: DataSection) -> None:
        super().__init__(data)
        splits = (data.split, data.validation_split)
        self._parts = [
            _load_dataset(data, data.source, data.subset, split=split, revision=data.revision) if split else None
            for split in splits
        ]

    def fingerprint(self) -> str:
        """Return the hash of the data sets' fingerprints and of the settings that select text in them."""
        data = self._data
        return digest(
            [fingerprint_of(part) for part in self._parts if part is not None],
            [data.text_column, data.validation_fraction, data.validation_documents],
        )

    def _load(self) -> tuple[Any, Any]:
        training, held_out = self._parts
        return training, held_out


def _refuse(data: DataSection, kind: str, *fields: str) -> None:
    """Raise UserError if one of `fields` is set, which do not apply to this kind of source."""
    for field in fields:
        if getattr(data, field):
            raise UserError(f"data.{field} does not apply to {kind} ({data.source}); leave it out.")


def _is_local(source: str) -> bool:
    return Path(source).suffix in LOADERS or Path(source).expanduser().exists()


def _local_files(source: str) -> list[Path]:
    """Return the file `source`, or the text files in the directory `source`, ordered by path."""
    path = Path(source).expanduser()
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in LOADERS and file.is_file())
        if not files:
            raise UserError(f"The directory {source!r} holds no {', '.join(LOADERS)} file.")
        if len({file.suffix for file in files}) > 1:
            raise UserError(f"The directory {source!r} mixes kinds of files; keep one of {', '.join(LOADERS)} there.")
    elif not path.is_file():
        raise FileNotFoundError(f"There is no text file {source!r}.")
    elif path.suffix not in LOADERS:
        raise UserError(f"{source!r} is not a supported kind of text file; give one of {', '.join(LOADERS)}.")
    if not any(file.stat().st_size for file in files):
        raise UserError(f"{source} is empty.")
    return files


def _load_dataset(data: DataSection, *arguments: str | None, **options: Any) -> Any:
    """Return ``datasets.load_dataset(...)``, a Dataset or an IterableDataset; raise UserError if it is empty."""
    what = arguments[0] if "data_files" not in options else ", ".join(options["data_files"])
    try:
        loaded = datasets.load_dataset(
            *arguments, streaming=data.streaming, cache_dir=str(cache_directory() / "datasets"), **options
        )
        first = next(iter(loaded), None)
    except (datasets.exceptions.DatasetsError, OSError, RuntimeError, StopIteration, ValueError) as error:
        # `datasets` raises RuntimeError for a data set with a loading script, which it no longer runs
        cause = " ".join(str(error.__cause__ or error).split())[:300] or "it holds no records"
        raise UserError(f"{what} cannot be read: {cause}") from error
    if first is None:
        raise UserError(f"{what} is empty.")
    return loaded


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
