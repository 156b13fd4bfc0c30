"""Local Parquet files as a source of text."""

from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from revformers.data.loading import as_patterns, load_dataset
from revformers.data.local_sources import Content
from revformers.data.section import DataSection
from revformers.data.table_sources import Tables
from revformers.errors import UserError, reason_of


class ParquetFiles(Tables):
    """Local .parquet files."""

    def __init__(self, data: DataSection, files: list[Path], held_out: list[Path]) -> None:
        super().__init__(data)
        held_out = _with_records(held_out, data.validation_source) if held_out else []
        self._parts = (_with_records(files, data.source), held_out)
        self._content = Content(*self._parts)

    def fingerprint(self) -> str:
        """Return the hash of the content of all files and of the settings that select text in them."""
        return self._content.fingerprint(self._data)

    @cached_property
    def _numbers_of_records(self) -> dict[Path, int]:
        return {file: pyarrow.parquet.read_metadata(file).num_rows for part in self._parts for file in part}

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
            records = self._numbers_of_records[file]
            if number < records:
                return f"Record {number + 1} of {file}"
            number -= records
        raise IndexError(number)


def _with_records(files: list[Path], source: str | None) -> list[Path]:
    """Return the files that hold records.

    Raises:
        UserError: for a file that cannot be read or has two columns of one name, for files that differ in their
            columns, and if no file holds a record.

    """
    schemas: dict[Path, pa.Schema] = {}
    for file in files:
        try:
            with pyarrow.parquet.ParquetFile(file) as opened:
                records, schema = opened.metadata.num_rows, opened.schema_arrow
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{file} cannot be read: {reason_of(error)}.") from error
        if twice := [name for name in schema.names if schema.names.count(name) > 1]:
            raise UserError(f"{file} has two columns with the name {twice[0]!r}; rename one of them.")
        if records:
            schemas[file] = schema
    if not schemas:
        raise UserError(f"{source} holds no records.")
    first = next(iter(schemas))
    for file, schema in schemas.items():
        _check_alike(first, schemas[first], file, schema)
    return list(schemas)


def _check_alike(first: Path, expected: pa.Schema, file: Path, schema: pa.Schema) -> None:
    """Raise UserError if `datasets` would refuse to read both files as one, or turn values into other ones."""
    if odd := sorted(set(expected.names) ^ set(schema.names)):
        which, other = (file, first) if odd[0] in schema.names else (first, file)
        raise UserError(f"{which} has a column {odd[0]!r}, and {other} has none; give all files the same columns.")
    for name in expected.names:
        here, there = (of.field(name).type for of in (schema, expected))
        if not _casts_to(here, there):
            raise UserError(
                f"{file} holds {shorten(str(here), 80)} in its column {name!r}, where {first} holds "
                f"{shorten(str(there), 80)}; give the column the same type in all files."
            )


def _casts_to(here: pa.DataType, there: pa.DataType) -> bool:
    """Whether values of the type `here` stay the same if they are read as the type `there`."""
    here, there = (kind.value_type if pa.types.is_dictionary(kind) else kind for kind in (here, there))
    if pa.types.is_null(here):
        return True
    if pa.types.is_struct(here) and pa.types.is_struct(there):
        fields = {field.name: field.type for field in there}
        return all(field.name in fields and _casts_to(field.type, fields[field.name]) for field in here)
    if _is_list(here) and _is_list(there):
        return _casts_to(here.value_type, there.value_type)
    if pa.types.is_floating(here) and pa.types.is_floating(there):
        return here.bit_width <= there.bit_width
    # an integer that does not fit is an error of `datasets`
    return here == there or any(kind(here) and kind(there) for kind in (_is_text, pa.types.is_integer))


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
