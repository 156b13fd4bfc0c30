"""Sources whose records are rows of a data set."""

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from revformers.data.section import DataSection
from revformers.data.source import RowMaker
from revformers.data.sources import open_source
from revformers.errors import UserError
from tests.data.conftest import RECORDS, texts_in, undecodable


@pytest.mark.thorough
def test_the_standard_library_has_a_fingerprint_of_its_split():
    first, again = open_source(DataSection()), open_source(DataSection(validation_fraction=0.1))
    assert first.fingerprint() == open_source(DataSection()).fingerprint() != again.fingerprint()
    assert len(list(first.split().validation)) < len(list(again.split().validation))


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_data_sets_are_asked_for_by_name_configuration_and_split(monkeypatch, streaming):
    calls = []

    def load_dataset(*arguments, **options):
        calls.append((*arguments, options["split"], options["revision"], options["streaming"]))
        loaded = datasets.Dataset.from_dict({"content": RECORDS})
        return loaded.to_iterable_dataset() if options["streaming"] else loaded

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = DataSection(
        source="owner/name",
        subset="english",
        split="train[:1%]",
        revision="a1b2c3",
        validation_split="test",
        text_column="content",
        streaming=streaming,
        tokenizer="given",
    )
    split = open_source(data).split()
    assert calls == [
        ("owner/name", "english", "train[:1%]", "a1b2c3", streaming),
        ("owner/name", "english", "test", "a1b2c3", streaming),
    ]
    assert sorted(split.training) == sorted(split.validation) == sorted(RECORDS)
    assert split.separated


def test_a_hub_data_set_has_a_fingerprint_of_its_content_and_its_split(monkeypatch):
    def fingerprint(records, **options):
        loaded = datasets.Dataset.from_dict({"text": records})
        monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **options: loaded)
        return open_source(DataSection(source="owner/name", **options)).fingerprint()

    first = fingerprint(RECORDS)
    assert fingerprint(RECORDS) == first
    assert fingerprint(RECORDS[:-1]) != first
    assert fingerprint(RECORDS, validation_fraction=0.5) != first


@pytest.mark.parametrize("streaming", [False, True])
def test_a_record_of_a_hub_data_set_is_named(monkeypatch, streaming):
    def load_dataset(*arguments, **options):
        loaded = datasets.Dataset.from_dict({"text": ["a", "b", None]})
        return loaded.to_iterable_dataset() if options["streaming"] else loaded

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = DataSection(source="owner/name", streaming=streaming, tokenizer="given", validation_documents=1)
    with pytest.raises(UserError, match=r"Record 3 of owner/name \(train\) holds null in its column 'text'"):
        list(open_source(data).split().training)


def test_bytes_of_a_hub_data_set_that_are_no_text_are_named(monkeypatch):
    loaded = datasets.Dataset(pa.table({"text": ["a", "b"]}).append_column("title", undecodable([b"x", b"caf\xe9"])))
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **options: loaded)
    maker = RowMaker(lambda place, record: {"title": record["title"]}, "title", texts_in("title"))
    with pytest.raises(UserError, match=r"Record 2 of owner/name \(train\) holds bytes in its column 'title' that are"):
        open_source(DataSection(source="owner/name")).rows(maker)
