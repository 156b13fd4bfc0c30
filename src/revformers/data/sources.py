"""Where the text comes from: the standard library, local files, or a data set on the hub."""

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
    """Training and validation documents; both can be iterated over again.

    Attributes:
        training: texts to train on.
        validation: texts held out.
        separated: whether each is a document of its own, as lines of a running text are not.

    """

    training: Documents
    validation: Documents
    separated: bool


class Source(ABC):
    """A body of text that can name its content without having read all of it into memory."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a name for the content: other text, or the same split otherwise, has another name."""

    @abstractmethod
    def split(self) -> Split:
        """Return the documents, split into training and validation.

        Raises:
            UserError: where there is no text, or too little of it.

        """

    @abstractmethod
    def records(self) -> tuple[Any, Any]:
        """Return the data sets, with all their columns, that the training and the validation documents come from.

        Raises:
            UserError: where there is too little to hold something out.

        """


def open_source(data: DataSection) -> Source:
    """Return the source that the data section of a recipe describes.

    Raises:
        FileNotFoundError: for a local file that is not there.
        UserError: for a directory without text files, or with more than one kind of them.

    """
    if data.streaming and data.tokenizer is None:
        raise UserError("data.streaming needs a tokenizer that exists; name one in data.tokenizer.")
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
    """The source files and the documentation of the running Python's standard library."""

    def __init__(self, data: DataSection) -> None:
        self._data = data
        self._files = standard_library.standard_library_files()

    def fingerprint(self) -> str:
        """Return the hash of all files and of the share held out."""
        return digest("stdlib", standard_library.fingerprint(self._files), self._data.validation_fraction)

    def split(self) -> Split:
        """Return the files, split by a hash of their paths."""
        training, validation = standard_library.split_by_file(self._files, self._data.validation_fraction)
        return Split([file.text for file in training], [file.text for file in validation], separated=True)

    def records(self) -> tuple[Any, Any]:
        """Return the files, split by a hash of their paths, in one column."""
        split = self.split()
        return (
            datasets.Dataset.from_dict({self._data.text_column: split.training}),
            datasets.Dataset.from_dict({self._data.text_column: split.validation}),
        )


class LocalFiles(Source):
    """Local .txt, .jsonl or .parquet files."""

    def __init__(self, data: DataSection) -> None:
        self._data = data
        self._training_files = _local_files(data.source)
        self._validation_files = _local_files(data.validation_source) if data.validation_source else []
        if self._validation_files and self._validation_files[0].suffix != self._training_files[0].suffix:
            raise UserError("data.source and data.validation_source must be files of one kind.")

    def fingerprint(self) -> str:
        """Return the hash of the content of all files and of what picks the text in them."""
        data = self._data
        return digest(
            [(file.suffix, file_digest(file)) for file in self._training_files],
            [(file.suffix, file_digest(file)) for file in self._validation_files],
            [data.text_column, data.validation_fraction, data.validation_documents],
        )

    @property
    def separated(self) -> bool:
        """Whether each record is a document of its own, as lines of .txt files are not."""
        return self._training_files[0].suffix != ".txt"

    def split(self) -> Split:
        """Return the records' text, or the lines of .txt files."""
        return _documents(*self._load_all(), self._data, self.separated)

    def all_records(self) -> Any:
        """Return the records, or the lines of .txt files, with nothing held out."""
        return self._load(self._training_files)

    def records(self) -> tuple[Any, Any]:
        """Return the records, or the lines of .txt files."""
        return _hold_out(*self._load_all(), self._data)

    def _load_all(self) -> tuple[Any, Any]:
        held_out = self._load(self._validation_files) if self._validation_files else None
        return self._load(self._training_files), held_out

    def _load(self, files: list[Path]) -> Any:
        suffix = files[0].suffix
        options = {"keep_linebreaks": True} if suffix == ".txt" else {}
        return _load_dataset(
            self._data, LOADERS[suffix], data_files=[str(file) for file in files], split="train", **options
        )


class HubDataset(Source):
    """A data set on the Hugging Face hub."""

    def __init__(self, data: DataSection) -> None:
        self._data = data
        self._training = self._load(data.split)
        self._held_out = self._load(data.validation_split) if data.validation_split else None

    def fingerprint(self) -> str:
        """Return the fingerprints that `datasets` gives its data sets, and what picks the text in them."""
        data = self._data
        parts = [self._training, self._held_out]
        return digest(
            [fingerprint_of(part) for part in parts if part is not None],
            [data.text_column, data.validation_fraction, data.validation_documents],
        )

    def split(self) -> Split:
        """Return the records' text."""
        return _documents(self._training, self._held_out, self._data, separated=True)

    def records(self) -> tuple[Any, Any]:
        """Return the records."""
        return _hold_out(self._training, self._held_out, self._data)

    def _load(self, split: str) -> Any:
        data = self._data
        return _load_dataset(data, data.source, data.subset, split=split, revision=data.revision)


def _refuse(data: DataSection, kind: str, *fields: str) -> None:
    """Raise UserError where one of `fields`, which mean nothing for this kind of source, is given."""
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
        raise UserError(f"{source!r} is none of the kinds of text that can be read: {', '.join(LOADERS)}.")
    if not any(file.stat().st_size for file in files):
        raise UserError(f"{source} is empty.")
    return files


def _load_dataset(data: DataSection, *arguments: str | None, **options: Any) -> Any:
    """Return ``datasets.load_dataset(...)``, a Dataset or an IterableDataset, having seen that it holds something."""
    what = arguments[0] if "data_files" not in options else ", ".join(options["data_files"])
    try:
        loaded = datasets.load_dataset(
            *arguments, streaming=data.streaming, cache_dir=str(cache_directory() / "datasets"), **options
        )
        first = next(iter(loaded), None)
    except (datasets.exceptions.DatasetsError, OSError, RuntimeError, StopIteration, ValueError) as error:
        # `datasets` raises RuntimeError for a data set that is a script, which it no longer runs
        cause = " ".join(str(error.__cause__ or error).split())[:300] or "it holds no records"
        raise UserError(f"{what} cannot be read: {cause}") from error
    if first is None:
        raise UserError(f"{what} is empty.")
    return loaded


def _documents(training: Any, held_out: Any, data: DataSection, separated: bool) -> Split:
    """Return the text of the records."""
    for part in (training, held_out):
        if part is not None and data.text_column not in (first := next(iter(part))):
            raise UserError(
                f"{data.source} has no column {data.text_column!r} but {', '.join(first)}; set data.text_column."
            )
    training, held_out = _hold_out(training, held_out, data)
    return Split(training[data.text_column], held_out[data.text_column], separated)


def _hold_out(training: Any, held_out: Any, data: DataSection) -> tuple[Any, Any]:
    """Hold the first documents out, unless there is a validation set of its own."""
    if data.streaming:
        if held_out is None:
            if data.validation_documents is None:
                raise UserError(
                    "A streamed source has no known length to hold a share out of; set data.validation_documents."
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
