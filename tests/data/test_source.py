"""Rows, and what is held out of them."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from torch.utils.data import DataLoader

from revformers.data.section import DataSection
from revformers.data.source import RowMaker, text_rows
from revformers.data.sources import open_source
from revformers.errors import UserError
from tests.data.conftest import RECORDS, texts_in


def test_rows_are_made_of_records_with_their_places(files):
    def row(place, record):
        return {"place": str(place), "text": record["text"].upper()}

    maker = RowMaker(row, "upper", texts_in("place", "text"))
    for kind, unit in (("jsonl", "Line"), ("parquet", "Record")):
        source = open_source(DataSection(source=str(files / f"a.{kind}"), validation_documents=2))
        training, held_out = source.rows(maker)
        assert held_out[1] == {"place": f"{unit} 2 of {files / f'a.{kind}'}", "text": "DOCUMENT 1"}
        assert training[0]["place"].startswith(f"{unit} 3 of")
        assert training.column_names == ["place", "text"]
        assert source.first_records()[0]["text"] == "document 0"
        assert len(list(source.documents())) == len(RECORDS)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_rows_of_a_column_of_any_name_are_made(files, kind):
    """Also of the name that the lines of a running text have."""
    maker = RowMaker(lambda place, record: {"text": record["text"].strip().upper()}, "upper", texts_in("text"))
    _, held_out = open_source(DataSection(source=str(files / f"a.{kind}"), validation_documents=2)).rows(maker)
    assert held_out["text"][:] == ["DOCUMENT 0", "DOCUMENT 1"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("wrong", "rest"),
    [
        ([2], None),
        ([2, 5], " 1 other record cannot be used either: PLACE 5."),
        ([2, 5, 7], " 2 other records cannot be used either: PLACE 5 and PLACE 7."),
        ([2, 5, 7, 9], " 3 other records cannot be used either: PLACE 5 and PLACE 7 among them."),
    ],
)
def test_several_records_that_cannot_be_used_are_counted(tmp_path, kind, wrong, rest):
    records = [{"text": None if number in wrong else "a", "id": number} for number in range(1, 11)]
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        pa.parquet.write_table(pa.Table.from_pylist(records), path)
    unit = "Line" if kind == "jsonl" else "Record"
    source = open_source(DataSection(source=str(path)))
    for read in (source.split, lambda: source.rows(text_rows("text", "data.text_column"))):
        with pytest.raises(UserError) as caught:
            read()
        first = f"{unit} 2 of {path} holds null in its column 'text', not text."
        assert str(caught.value).startswith(first)
        assert str(caught.value).replace(f" of {path}", "") == (first + (rest or "")).replace("PLACE", unit).replace(
            f" of {path}", ""
        )


def test_a_line_that_cannot_be_read_does_not_hide_the_first_fault(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' * 200 + '{"text": null}\n{"text": \n')
    with pytest.raises(UserError, match=r"^Line 201 of .* holds null in its column 'text', not text\.$"):
        open_source(DataSection(source=str(path))).split()


def _texts(documents):
    yield from ({"text": text} for text in documents)


def test_a_worker_of_a_data_loader_reads_all_texts_of_a_stream(tmp_path):
    """Of two files, in the same order, although each of two workers would get one file of a plain data set."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": f"{name}{n}"}) + "\n" for n in range(20)))
    section = DataSection(source=str(tmp_path), streaming=True, validation_documents=4, tokenizer="any")
    texts = list(open_source(section).split().training)
    assert len(texts) == 36
    stream = datasets.IterableDataset.from_generator(
        _texts, gen_kwargs={"documents": open_source(section).split().training}
    )
    loaded = DataLoader(stream, batch_size=None, num_workers=2)
    assert [row["text"] for row in loaded] == texts
