"""The choice of the source of text: the standard library, local files, or a data set on the hub."""

from pathlib import Path

from revformers.data.local_files import KINDS, find_files, kind_of
from revformers.data.local_sources import TextFiles
from revformers.data.parquet_files import ParquetFiles
from revformers.data.section import DataSection
from revformers.data.source import Source
from revformers.data.table_sources import HubDataset, StandardLibrary
from revformers.errors import UserError


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


def _refuse(data: DataSection, kind: str, *fields: str) -> None:
    """Raise UserError if some of `fields` are set, which do not apply to this kind of source."""
    found = [field for field in fields if getattr(data, field)]
    if found:
        unset = " ".join(f"--data.{field} {'False' if getattr(data, field) is True else 'none'}" for field in found)
        raise UserError(
            f"{' and '.join(f'data.{field}' for field in found)} cannot be set for {kind} ({data.source}); leave it "
            f"out, or give {unset} if a recipe sets it."
        )


def _is_local(source: str) -> bool:
    return kind_of(source) in KINDS or Path(source).expanduser().exists()
