"""The text in a column of a record, or a sentence about what is there."""

from collections.abc import Mapping
from typing import Any

from revformers.errors import UserError


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
        inner = [name for name, value in record.items() if isinstance(value, list) and value and type(value[0]) is dict]
        nested = f" The records seem to lie in {inner[0]!r}: write them to a file of their own." if inner else ""
        raise UserError(
            f"{place} has no column {column!r}; its columns are {', '.join(record)}. Set {setting} to the one "
            f"that holds the text in every record.{nested}"
        )
    text = record[column]
    if not isinstance(text, str):
        raise UserError(f"{place} holds {named_kind(text)} in its column {column!r}, not text.")
    return text


def named_kind(value: Any) -> str:
    """Return what a value of JSON is, in words."""
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
    return "an object" if isinstance(value, dict) else names.get(type(value), f"a {type(value).__name__}")
