"""The records of local files of text and JSON, each with its place.

`datasets` can read text and JSON as well. It reads a file in parts, though, and turns a number or an object in a later
part into text, and its errors name neither the file nor the line.
"""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from revformers.data.columns import named_kind
from revformers.data.local_files import kind_of
from revformers.errors import UserError

Record = dict[str, Any]
Placed = tuple[str, Record]
"""A record after its place, such as "Line 3 of a.jsonl"."""

_OTHER_ENCODINGS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_DAMAGED = (OSError, EOFError, zlib.error)  # what reading a compressed file raises


def placed_records(files: Iterable[Path]) -> Iterator[Placed]:
    """Yield the records of .txt, .jsonl and .json files with their places.

    A record of a .txt file is a line with its end, in the column text. A .json file holds an array of records, or a
    record in a line as .jsonl files do; a record that is a string is read as one of a column text. Blank lines of JSON
    are skipped, and so is a byte order mark.

    Raises:
        UserError: for a file that is not encoded in UTF-8, is not JSON, or holds a record that is not an object.

    """
    for file in files:
        if kind_of(file) == ".txt":
            yield from placed_lines(file)
            continue
        with _opened(file) as content:
            _check_encoding(file, content)
            if kind_of(file) == ".json" and _first_byte(content) == b"[":
                yield from _array(file, content)
            else:
                yield from _json_lines(file, content)


def placed_lines(file: Path) -> Iterator[Placed]:
    """Yield the lines of a file with their places, as records of a column text, with line feeds as their ends.

    Raises:
        UserError: for a file that is not encoded in UTF-8.

    """
    with _opened(file) as content:
        _check_encoding(file, content)
        try:
            for number, line in enumerate(io.TextIOWrapper(content, encoding="utf-8"), start=1):
                yield f"Line {number} of {file}", {"text": line}
        except UnicodeDecodeError:
            # It is raised for a part of the file, whose lines are not known.
            with _opened(file) as again:
                for number, undecoded in enumerate(again, start=1):
                    _decoded(undecoded, f"Line {number} of {file}")
            raise
        except _DAMAGED as error:
            raise UserError(f"{file} cannot be read: {error}.") from error


def _opened(file: Path) -> BinaryIO:
    """Open a file, compressed or not, to read its bytes."""
    opened = file.open("rb")
    if opened.peek(2)[:2] != b"\x1f\x8b":
        return opened
    opened.close()
    return gzip.open(file)  # type: ignore[return-value]


def _check_encoding(file: Path, content: Any) -> None:
    """Raise UserError for a file whose first bytes are not those of UTF-8, and skip a byte order mark."""
    try:
        start = content.peek(4096)[:4096]
    except _DAMAGED as error:
        raise UserError(f"{file} cannot be read: {error}.") from error
    if start.startswith(_OTHER_ENCODINGS) or b"\0" in start:
        raise UserError(f"{file} is not text in UTF-8, but in UTF-16 or binary; save it in UTF-8.")
    if start.startswith(codecs.BOM_UTF8):
        content.read(len(codecs.BOM_UTF8))


def _first_byte(content: Any) -> bytes:
    return content.peek(4096).lstrip()[:1]


def _json_lines(file: Path, content: Any) -> Iterator[Placed]:
    for number, line in enumerate(_bytes(file, content), start=1):
        if not line.isspace():
            place = f"Line {number} of {file}"
            hint = " A .json file holds an array of records, or one record a line." if kind_of(file) == ".json" else ""
            yield place, _record(place, _parsed(_decoded(line, place), place, hint))


def _array(file: Path, content: Any) -> Iterator[Placed]:
    whole = b"".join(_bytes(file, content))
    for number, value in enumerate(_parsed(_decoded(whole, str(file)), str(file)), start=1):
        place = f"Record {number} of {file}"
        yield place, _record(place, value)


def _bytes(file: Path, content: Any) -> Iterator[bytes]:
    """Yield the lines of a file; raise UserError if it cannot be read to its end."""
    try:
        yield from content
    except _DAMAGED as error:
        raise UserError(f"{file} cannot be read: {error}.") from error


def _decoded(content: bytes, place: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place} is not text in UTF-8 (byte {error.start + 1} is {error.object[error.start]:#x}); save the file "
            f"in UTF-8."
        ) from error


def _parsed(text: str, place: str, hint: str = "") -> Any:
    try:
        value = _DECODER.decode(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if place.startswith("Line") else f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{place} is not valid JSON ({error.msg} at {where}).{hint}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not valid JSON ({error}).") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("an object has the same name twice")
    return record


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)  # json.loads would make one for every record


def _record(place: str, value: Any) -> Record:
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise UserError(f"{place} is {named_kind(value)}, not an object with columns.")
    return value
