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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from revformers.data.columns import named_kind, wrong_byte
from revformers.data.local_files import kind_of
from revformers.errors import UserError

Record = dict[str, Any]
Placed = tuple[str, Record]
"""A record after its place, such as "Line 3 of a.jsonl"."""

_OTHER_ENCODINGS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_GZIP = b"\x1f\x8b"
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
        elif kind_of(file) == ".json" and _is_array(file):
            yield from _array(file)
        else:
            yield from _json_lines(file)


def placed_lines(file: Path) -> Iterator[Placed]:
    """Yield the lines of a file with their places, as records of a column text, with line feeds as their ends.

    Raises:
        UserError: for a file that is not encoded in UTF-8.

    """
    for place, line in _lines(file):
        yield place, {"text": line}


def check_no_nul(file: Path) -> None:
    """Raise UserError for a file in which a NUL character shows that it is not text.

    The bytes are searched many times as fast as lines are read.
    """
    with _opened(file) as content:
        found = any(b"\0" in part for part in iter(lambda: content.read(2**20), b""))
    if found:
        for _ in _lines(file):
            pass  # names the line


def is_compressed(file: Path) -> bool:
    """Return whether the content of a file is compressed, whatever its name says."""
    with file.open("rb") as opened:
        return opened.read(2) == _GZIP


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Open a file, compressed or not, to read its bytes after a byte order mark.

    Raises:
        UserError: if it cannot be read to its end, or its first bytes are not those of UTF-8.

    """
    try:
        with file.open("rb") as opened:
            content: Any = gzip.GzipFile(fileobj=opened) if opened.peek(2)[:2] == _GZIP else opened
            start = content.peek(4096)[:4096]
            if start.startswith(_OTHER_ENCODINGS) or b"\0" in start:
                raise UserError(f"{file} is not text in UTF-8, but in UTF-16 or binary; save it in UTF-8.")
            if start.startswith(codecs.BOM_UTF8):
                content.read(len(codecs.BOM_UTF8))
            yield content
    except _DAMAGED as error:
        raise UserError(f"{file} cannot be read: {error}.") from error


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the lines of a file after their places, with line feeds as their ends."""
    with _opened(file) as content:
        # bytes that are not text become halves of surrogate pairs here, whose line is then known
        text = io.TextIOWrapper(content, encoding="utf-8", errors="surrogateescape")
        for number, line in enumerate(text, start=1):
            place = f"Line {number} of {file}"
            if "\0" in line:
                raise UserError(f"{place} holds a NUL character, so it is not text in UTF-8; correct or remove it.")
            yield place, line if line.isascii() else _checked(line, place)


def _checked(text: str, place: str) -> str:
    """Return text that was decoded with "surrogateescape"; raise UserError if it was not in UTF-8."""
    try:
        text.encode("utf-8", "surrogateescape").decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is not text in UTF-8 ({wrong_byte(error)}); save the file in UTF-8.") from error
    return text


def _is_array(file: Path) -> bool:
    """Return whether a file of JSON begins with a bracket."""
    with _opened(file) as content:
        return next((line.lstrip()[:1] for line in content if not line.isspace()), b"") == b"["


def _json_lines(file: Path) -> Iterator[Placed]:
    hint = " A .json file holds an array of records, or one record a line." if kind_of(file) == ".json" else ""
    for place, line in _lines(file):
        if not line.isspace():
            # without its end, after which an error would be counted as one in the next line
            yield place, _record(place, _parsed(line.removesuffix("\n"), place, hint))


def _array(file: Path) -> Iterator[Placed]:
    with _opened(file) as content:
        whole = content.read().decode(errors="surrogateescape")
    for number, value in enumerate(_parsed(_checked(whole, str(file)), str(file)), start=1):
        place = f"Record {number} of {file}"
        yield place, _record(place, value)


def _parsed(text: str, place: str, hint: str = "") -> Any:
    try:
        value = _DECODER.decode(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is not text
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if place.startswith("Line") else f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{place} is not valid JSON ({error.msg.removesuffix(' at')} at {where}).{hint}") from error
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
