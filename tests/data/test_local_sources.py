"""Files of text and JSON: every record is checked, and the content is known again."""

import gzip
import json
import time

import pytest

from revformers.data import local_sources
from revformers.data.cache import file_digest
from revformers.data.section import DataSection
from revformers.data.sources import open_source
from revformers.errors import UserError


def test_the_fingerprint_is_that_of_the_content_and_the_split(files):
    def fingerprint(name="a.txt", **options):
        return open_source(DataSection(source=str(files / name), **options)).fingerprint()

    (files / "same.txt").write_bytes((files / "a.txt").read_bytes())
    (files / "other.txt").write_text("other\n")
    assert fingerprint() == fingerprint("same.txt")
    others = [fingerprint("other.txt"), fingerprint(validation_fraction=0.5), fingerprint(validation_documents=3)]
    others += [fingerprint("a.jsonl"), fingerprint(validation_source=str(files / "other.txt"))]
    assert len({fingerprint(), *others}) == 6


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n\n", "holds no records"),
        ("a.jsonl", b'{"text": ', r"Line 1 of .*a\.jsonl is not valid JSON"),
        ("a.jsonl", b'{"body": "x"}\n', "no column 'text'; its columns are body. Set data.text_column"),
        ("a.json", b"[]", "holds no records"),
        ("a.json", b'{"data": [{"text": "x"}]}', r"no column 'text'.* The records seem to lie in 'data'"),
        ("a.txt", b"one\ncaf\xe9\n", r"Line 2 of .*a\.txt is not text in UTF-8"),
        ("a.parquet", b"PAR1", "cannot be read"),
        ("a.txt", b"one line\n", "holds 1 record, too few to hold 1 out"),
        ("a.txt", b"one line\n" * 2000 + b"a\0b\n", r"Line 2001 of .*a\.txt holds a NUL character"),
        (
            "a.txt.gz",
            gzip.compress(b"one line\n" * 2000 + b"a\0b\n", mtime=0),
            r"Line 2001 of .* holds a NUL character",
        ),
        ("a.md", b"x", "not a supported kind of text file"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        open_source(DataSection(source=str(tmp_path / name))).split()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize("compressed", [False, True])
def test_the_content_of_a_file_tells_whether_it_is_compressed(tmp_path, name, compressed, streaming):
    content = b"one\ntwo\nthree\n"
    (tmp_path / name).write_bytes(gzip.compress(content, mtime=0) if compressed else content)
    options = {"streaming": True, "tokenizer": "given"} if streaming else {}
    documents = open_source(DataSection(source=str(tmp_path / name), **options)).documents()
    assert list(documents) == ["one\n", "two\n", "three\n"]


NO_TEXT = [(5, "a number"), (None, "null"), (["x", "y"], "a list"), ({"x": 1}, "an object"), (True, "true or false")]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("value", "kind"), [*NO_TEXT, (..., "no column 'text'")])
def test_every_record_of_every_file_is_checked(tmp_path, value, kind, streaming):
    """In a second file, which `datasets` reads apart and casts to the types of the first."""
    write = [{"text": "a", "id": 1}] * 3
    wrong = [{"text": "a"}, {"id": 2} if value is ... else {"text": value}]
    for name, records in (("a.jsonl", write), ("b.jsonl", wrong)):
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    options = {"streaming": True, "tokenizer": "given", "validation_documents": 1} if streaming else {}
    with pytest.raises(UserError) as caught:
        list(open_source(DataSection(source=str(tmp_path), **options)).split().training)
    assert f"Line 2 of {tmp_path / 'b.jsonl'} " in str(caught.value)
    assert kind in str(caught.value)


def test_changed_files_are_read_again(files):
    for text in ("first", "second"):
        (files / "a.jsonl").write_text(json.dumps({"text": text}) + "\n" + json.dumps({"text": "other"}) + "\n")
        assert list(open_source(DataSection(source=str(files / "a.jsonl"))).split().validation) == [text]


def test_a_file_is_read_once_to_be_named_unless_it_changes(tmp_path, monkeypatch):
    file = tmp_path / "a.jsonl"
    read = []
    monkeypatch.setattr(local_sources, "file_digest", lambda file: read.append(file) or file_digest(file))

    def fingerprint():
        return open_source(DataSection(source=str(file))).fingerprint()

    def write(text):
        file.write_text(f'{{"text": "{text}"}}\n')

    write("one")
    fresh = [fingerprint(), fingerprint()]
    assert read == [file, file]  # its next change may bear the same time
    monkeypatch.setattr(local_sources, "SETTLED", 0)
    settled = [fingerprint(), fingerprint()]
    assert read == [file, file, file]
    assert {*fresh, *settled} == {fresh[0]}
    time.sleep(0.02)
    write("two")
    assert fingerprint() != fresh[0]


@pytest.mark.parametrize(("name", "content"), [("a.json", "[]"), ("a.jsonl", "\n \n"), ("a.json", "\n")])
def test_files_without_records_have_none_to_show(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name} holds no records\."):
        open_source(DataSection(source=str(tmp_path / name))).first_records()
