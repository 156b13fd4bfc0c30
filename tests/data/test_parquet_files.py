"""Parquet files: every record is checked and counted in its file, and their columns fit each other."""

import pyarrow as pa
import pyarrow.parquet
import pytest

from revformers.data.section import DataSection
from revformers.data.source import RowMaker
from revformers.data.sources import open_source
from revformers.errors import UserError
from tests.data.conftest import texts_in, undecodable

STREAMED = {"streaming": True, "tokenizer": "given", "validation_documents": 1}


def read(tmp_path, tables, streaming=False):
    for name, table in zip("abc", tables, strict=False):
        pa.parquet.write_table(table, tmp_path / f"{name}.parquet")
    source = open_source(DataSection(source=str(tmp_path), **(STREAMED if streaming else {"validation_documents": 1})))
    split = source.split()
    return sorted([*split.validation, *split.training])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("texts", "record", "kind"),
    [
        (["b", None, "c"], 2, "null"),
        ([["b", "c"]], 1, "a list"),
        ([1, 2], 1, "a number"),
    ],
)
def test_records_of_columns_are_checked_and_counted_in_their_file(tmp_path, texts, record, kind, streaming):
    pa.parquet.write_table(pa.table({"text": ["a"] * 3 if kind == "null" else texts}), tmp_path / "a.parquet")
    pa.parquet.write_table(pa.table({"text": texts}), tmp_path / "b.parquet")
    options = {"streaming": True, "tokenizer": "given", "validation_documents": 1} if streaming else {}
    with pytest.raises(UserError) as caught:
        list(open_source(DataSection(source=str(tmp_path), **options)).split().training)
    file = tmp_path / ("b.parquet" if kind == "null" else "a.parquet")
    # a stream is counted over all files, in the order of reading
    place = f"Record {record + 3 * (kind == 'null')} of {tmp_path}" if streaming else f"Record {record} of {file}"
    assert f"{place} holds {kind} in its column 'text', not text." in str(caught.value)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("number", [1, 5])
def test_bytes_that_are_no_text_are_named_with_their_record(tmp_path, number, streaming):
    texts = [b"a"] * 6
    texts[number - 1] = b"caf\xe9"
    good = pa.table({"text": ["a"] * 3})
    with pytest.raises(UserError) as caught:
        read(tmp_path, [good, pa.table({"text": undecodable(texts)})], streaming)
    # a stream is not searched
    place = tmp_path if streaming else f"Record {number} of {tmp_path / 'b.parquet'}"
    column = "" if streaming else " in its column 'text'"
    assert f"{place} holds bytes{column} that are not text in UTF-8 (byte 4 is 0xe9); write" in str(caught.value)


def test_bytes_in_messages_are_named_as_well(tmp_path):
    turns = pa.StructArray.from_arrays([undecodable([b"a", b"caf\xe9"])], ["content"])
    pa.parquet.write_table(pa.table({"messages": pa.ListArray.from_arrays([0, 1, 2], turns)}), tmp_path / "a.parquet")
    maker = RowMaker(lambda place, record: {"messages": str(record["messages"])}, "messages", texts_in("messages"))
    with pytest.raises(UserError, match=r"Record 2 of .*a\.parquet holds bytes in its column 'messages' that are not"):
        open_source(DataSection(source=str(tmp_path))).rows(maker)


FIRST = pa.table({"text": ["a", "b"], "id": pa.array([1, 2], pa.int32()), "turns": [[{"x": "a", "y": 1}]] * 2})
FIRST = FIRST.append_column("score", pa.array([0.1, 1e300]))
NO_TEXTS = pa.array([], pa.string())


@pytest.mark.parametrize(
    "other",
    [
        FIRST.select(["score", "turns", "id", "text"]),
        FIRST.set_column(0, "text", pa.array(["a", "b"], pa.large_string())),
        FIRST.set_column(0, "text", pa.array(["a", "b"]).dictionary_encode()),
        FIRST.set_column(1, "id", pa.array([1, None], pa.int64())),
        FIRST.set_column(1, "id", pa.nulls(2)),
        FIRST.set_column(3, "score", pa.array([0.1, 1e30], pa.float32())),
        FIRST.set_column(2, "turns", pa.array([[{"x": "a"}], []])),
        FIRST.slice(0, 0),
        pa.table({"other": NO_TEXTS}),
    ],
)
def test_files_with_columns_that_fit_are_read_together(tmp_path, other):
    texts = ["a", "b"] * (1 + bool(other.num_rows))
    assert read(tmp_path, [FIRST, other]) == sorted(texts)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([FIRST.slice(0, 0)], "DIRECTORY holds no records."),
        ([pa.table({})], "DIRECTORY holds no records."),
        (
            [pa.Table.from_arrays([pa.array(["a"])] * 2, ["text", "text"])],
            "a.parquet has two columns with the name 'text'; rename one of them.",
        ),
        ([FIRST, FIRST.drop_columns("id")], "a.parquet has a column 'id', and DIRECTORY/b.parquet has none; give all"),
        ([FIRST.drop_columns("id"), FIRST], "b.parquet has a column 'id', and DIRECTORY/a.parquet has none; give all"),
        (
            [FIRST, FIRST.set_column(0, "text", pa.array([1, 2]))],
            "b.parquet holds int64 in its column 'text', where DIRECTORY/a.parquet holds string; give the column the",
        ),
        (
            [FIRST, FIRST.set_column(2, "turns", pa.array([[{"x": 1, "y": 1}]] * 2))],
            "b.parquet holds list<element: struct<x: int64, y: int64>> in its column 'turns', where",
        ),
        (
            [FIRST, FIRST.set_column(2, "turns", pa.array([[{"x": "a", "z": 1}]] * 2))],
            "b.parquet holds list<element: struct<x: string, z: int64>> in its column 'turns', where",
        ),
        (
            [FIRST.set_column(3, "score", pa.array([0.1, 0.2], pa.float32())), FIRST],
            "b.parquet holds double in its column 'score', where DIRECTORY/a.parquet holds float; give the column the",
        ),
    ],
)
def test_files_that_cannot_be_read_as_one_are_named(tmp_path, tables, message):
    """`datasets` would raise in its own words, turn numbers into text, or round them and read 1e300 as infinite."""
    with pytest.raises(UserError) as caught:
        read(tmp_path, tables)
    assert message.replace("DIRECTORY", str(tmp_path)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_records_of_a_file_are_counted_once_for_all_places(tmp_path, monkeypatch):
    pa.parquet.write_table(pa.table({"text": ["a"] * 9}), tmp_path / "a.parquet")
    read_metadata, calls = pa.parquet.read_metadata, []
    monkeypatch.setattr(pa.parquet, "read_metadata", lambda file: calls.append(file) or read_metadata(file))
    maker = RowMaker(lambda place, record: {"place": str(place)}, "place", texts_in("place"))
    _, held_out = open_source(DataSection(source=str(tmp_path), validation_documents=8)).rows(maker)
    assert held_out["place"][7] == f"Record 8 of {tmp_path / 'a.parquet'}"
    assert calls == [tmp_path / "a.parquet"]
