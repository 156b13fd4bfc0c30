"""Files as people have them: what each record says and where it is, or one sentence with the file and the record."""

import gzip
import json

import pytest

from revformers.data.placed_records import placed_lines, placed_records
from revformers.errors import UserError

THREE = [{"text": "one"}, {"text": "zwei €"}, {"text": "three"}]


LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in THREE).encode()


BOM = b"\xef\xbb\xbf"


def read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    return [
        (place.removesuffix(f" of {tmp_path / name}"), record) for place, record in placed_records([tmp_path / name])
    ]


@pytest.mark.parametrize(
    ("name", "content", "unit"),
    [
        ("a.jsonl", LINES, "Line"),
        ("a.jsonl", BOM + LINES, "Line"),
        ("a.jsonl", LINES.replace(b"\n", b"\r\n"), "Line"),
        ("a.jsonl", LINES.rstrip(), "Line"),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0), "Line"),
        ("a.jsonl", gzip.compress(BOM + LINES, mtime=0), "Line"),
        ("a.json", LINES, "Line"),
        ("a.json", json.dumps(THREE).encode(), "Record"),
        ("a.json", BOM + b"\n " + json.dumps(THREE, indent=1).encode(), "Record"),
        ("a.json", json.dumps([record["text"] for record in THREE]).encode(), "Record"),
        ("a.json.gz", gzip.compress(json.dumps(THREE).encode(), mtime=0), "Record"),
        ("a.json", b" \n" * 5000 + json.dumps(THREE).encode(), "Record"),
        ("a.json", BOM + b" " * 70_000 + json.dumps(THREE).encode(), "Record"),
        ("a.jsonl", LINES.replace(b"\n", b"\r"), "Line"),
    ],
)
def test_records_come_with_their_places(tmp_path, name, content, unit):
    assert read(tmp_path, name, content) == [(f"{unit} {number}", record) for number, record in enumerate(THREE, 1)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"one\nzwei \xe2\x82\xac\n"),
        ("a.TXT", BOM + b"one\r\nzwei \xe2\x82\xac\r\n"),
        ("a.txt.gz", gzip.compress(BOM + b"one\nzwei \xe2\x82\xac\n", mtime=0)),
    ],
)
def test_lines_of_text_have_line_feeds_and_no_byte_order_mark(tmp_path, name, content):
    assert read(tmp_path, name, content) == [("Line 1", {"text": "one\n"}), ("Line 2", {"text": "zwei €\n"})]
    assert [record["text"] for _, record in placed_lines(tmp_path / name)] == ["one\n", "zwei €\n"]


def test_blank_lines_of_json_are_counted_and_skipped_and_values_keep_their_types(tmp_path):
    content = b'{"a": 1}\n\n  \r\n{"a": "1", "b": {"c": null}}\n'
    assert read(tmp_path, "a.jsonl", content) == [("Line 1", {"a": 1}), ("Line 4", {"a": "1", "b": {"c": None}})]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", LINES + b'{"text": "caf\xe9"}\n', "Line 4 of FILE is not text in UTF-8 (byte 14 is 0xe9)"),
        ("a.json", b'["caf\xe9"]', "FILE is not text in UTF-8"),
        ("a.txt", b"one\ncaf\xe9\n", "Line 2 of FILE is not text in UTF-8 (byte 4 is 0xe9); save the file in UTF-8."),
        ("a.txt", b"one\rtwo\rcaf\xe9\r", "Line 3 of FILE is not text in UTF-8 (byte 4 is 0xe9)"),
        ("a.jsonl", LINES.replace(b"\n", b"\r") + b"caf\xe9", "Line 4 of FILE is not text in UTF-8 (byte 4 is 0xe9)"),
        ("a.txt", "zwei €".encode() + b"\xe9\n", "Line 1 of FILE is not text in UTF-8 (byte 9 is 0xe9)"),
        ("a.txt", b"one\n" * 5000 + b"a\0b\n", "Line 5001 of FILE holds a NUL character, so it is not text in UTF-8"),
        ("a.jsonl", LINES * 500 + b"a\0b\n", "Line 1501 of FILE holds a NUL character, so it is not text in UTF-8"),
        ("a.txt", "one\n".encode("utf-16"), "FILE is not text in UTF-8, but in UTF-16 or binary"),
        ("a.txt", "one\n".encode("utf-16-le"), "FILE is not text in UTF-8, but in UTF-16 or binary"),
        ("a.jsonl", LINES.decode().encode("utf-16"), "FILE is not text in UTF-8, but in UTF-16 or binary"),
        ("a.jsonl", LINES + b'{"text": \n', "Line 4 of FILE is not valid JSON (Expecting value at column"),
        ("a.jsonl", LINES + b'{"text": "a",}\n', "Line 4 of FILE is not valid JSON ("),
        (
            "a.jsonl",
            LINES + b'{"text": "a"\n{"text": "b"}\n',
            "FILE is not valid JSON (Expecting ',' delimiter at column 13)",
        ),
        ("a.jsonl", LINES + b'{"text": "a\r\n', "FILE is not valid JSON (Unterminated string starting at column 10)"),
        (
            "a.jsonl",
            LINES + b'{"text": "a"}{"text": "b"}',
            "Line 4 of FILE is not valid JSON (Extra data at column 14)",
        ),
        ("a.jsonl", LINES + b'{"text": "a", "text": "b"}', "Line 4 of FILE is not valid JSON (an object has the same"),
        ("a.jsonl", LINES + b'{"text": "\\ud800"}', "Line 4 of FILE is not valid JSON ("),
        ("a.jsonl", LINES + b"[" * 100_000, "Line 4 of FILE is not valid JSON ("),
        ("a.jsonl", LINES + b'{"n": ' + b"9" * 5000 + b"}", "Line 4 of FILE is not valid JSON ("),
        ("a.jsonl", LINES + b'["text"]\n', "Line 4 of FILE is a list, not an object with columns."),
        ("a.jsonl", LINES + b"null\n", "Line 4 of FILE is null, not an object"),
        ("a.json", b'[{"text": "a"}, 3]', "Record 2 of FILE is a number, not an object"),
        ("a.json", b'[{"text": "a"},\n {"text": "b"},]', "FILE is not valid JSON (Illegal trailing comma"),
        ("a.json", json.dumps({"data": THREE}, indent=1).encode(), "A .json file holds an array of records, or one"),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9], "FILE cannot be read: "),
    ],
)
def test_what_cannot_be_read_is_named_with_its_file_and_line(tmp_path, name, content, message):
    with pytest.raises(UserError) as caught:
        read(tmp_path, name, content)
    expected = message.replace("FILE", str(tmp_path / name))
    # the words for a comma differ between versions of Python
    assert expected.split("Illegal")[0] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_halves_of_a_surrogate_pair_are_one_character(tmp_path):
    content = b'{"text": "\\ud83d\\ude00 and \\\\ud800"}\n'
    assert read(tmp_path, "a.jsonl", content) == [("Line 1", {"text": "\U0001f600 and \\ud800"})]
