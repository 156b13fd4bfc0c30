"""The text in a column of a record, or a sentence about what is there."""

import datetime
import decimal
from collections.abc import Iterable, Mapping
from typing import Any

from revformers.errors import UserError

TYPE_NAMES = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
    bytes: "binary data",
    datetime.datetime: "a time",
    datetime.date: "a date",
    datetime.timedelta: "a duration",
    decimal.Decimal: "a decimal number",
}
"""What the values of a column are, in words."""


def text_of(place: object, record: Mapping[str, Any], column: str, setting: str = "text_column") -> str:
    """Return the text in a column of a record.

    Args:
        place: its str() names the record in messages.
        record: the record.
        column: the column.
        setting: the option that names the column.

    Raises:
        UserError: if the record has no such column, or no text there.

    """
    if column not in record:
        remedy = f"Set {setting} to the one that holds the text in every record."
        raise UserError(f"{place} {missing_column(column, record)} {remedy}{nested_records(record)}")
    text = record[column]
    if not isinstance(text, str):
        raise UserError(f"{place} holds {named_kind(text)} in its column {column!r}, not text.")
    return text


def missing_column(column: str, columns: Iterable[str]) -> str:
    """Return the end of a sentence whose subject has only other columns."""
    return f"has no column {column!r}; its columns are {', '.join(columns)}."


def nested_records(record: Mapping[str, Any]) -> str:
    """Return a sentence, after a space, about the records that lie in a column of a record, or an empty text.

    The turns of a conversation, which have a role or a speaker, are not records.
    """
    lists = {name: value for name, value in record.items() if isinstance(value, list) and value}
    inner = [name for name, (first, *_) in lists.items() if type(first) is dict and not first.keys() & {"role", "from"}]
    return f" The records seem to lie in {inner[0]!r}: write them to a file of their own." if inner else ""


def named_kind(value: Any) -> str:
    """Return what a value of a column is, in words."""
    return TYPE_NAMES.get(type(value), f"a value of the type {type(value).__name__}")


def wrong_byte(error: UnicodeDecodeError) -> str:
    """Return a clause about the first byte that is not UTF-8."""
    return f"byte {error.start + 1} is {error.object[error.start]:#x}"
