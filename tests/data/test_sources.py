import dataclasses
import json

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from revformers.data import sources
from revformers.data.section import DataSection
from revformers.data.sources import Rows, open_source
from revformers.errors import UserError

RECORDS = [f"document {number}" for number in range(20)]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"{record}\n" for record in RECORDS))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": record, "id": 1}) + "\n" for record in RECORDS))
    (tmp_path / "a.json").write_text(json.dumps([{"text": record, "id": 1} for record in RECORDS]))
    pa.parquet.write_table(pa.table({"text": RECORDS}), tmp_path / "a.parquet")
    return tmp_path


@pytest.mark.parametrize("kind", ["txt", "jsonl", "json", "parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_local_files_give_their_text_and_hold_the_first_of_it_out(files, kind, streaming):
    data = DataSection(
        source=str(files / f"a.{kind}"),
        streaming=streaming,
        tokenizer="given",
        validation_fraction=0.1,
        validation_documents=2 if streaming else None,
    )
    split = open_source(data).split()
    end = "\n" if kind == "txt" else ""
    assert split.separated == (kind != "txt")
    assert list(split.validation) == [record + end for record in RECORDS[:2]]
    training = [record + end for record in RECORDS[2:]]
    assert sorted(split.training) == sorted(training)
    if not streaming:  # a streamed source is shuffled
        assert list(split.training) == list(split.training) == training


def test_a_directory_and_validation_text_of_its_own(files):
    (files / "more").mkdir()
    for name in ("b", "c"):
        (files / "more" / f"{name}.txt").write_text(f"{name}\n")
    data = DataSection(source=str(files / "more"), validation_source=str(files / "a.txt"))
    split = open_source(data).split()
    assert list(split.training) == ["b\n", "c\n"]
    assert len(list(split.validation)) == len(RECORDS)


def test_the_fingerprint_is_that_of_the_content_and_the_split(files):
    def fingerprint(name="a.txt", **options):
        return open_source(DataSection(source=str(files / name), **options)).fingerprint()

    (files / "same.txt").write_bytes((files / "a.txt").read_bytes())
    (files / "other.txt").write_text("other\n")
    assert fingerprint() == fingerprint("same.txt")
    others = [fingerprint("other.txt"), fingerprint(validation_fraction=0.5), fingerprint(validation_documents=3)]
    others += [fingerprint("a.jsonl"), fingerprint(validation_source=str(files / "other.txt"))]
    assert len({fingerprint(), *others}) == 6


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

    monkeypatch.setattr(sources.datasets, "load_dataset", load_dataset)
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


def test_a_hub_data_set_has_a_fingerprint(monkeypatch):
    loaded = datasets.Dataset.from_dict({"text": RECORDS})
    monkeypatch.setattr(sources.datasets, "load_dataset", lambda *arguments, **options: loaded)
    first = open_source(DataSection(source="owner/name"))
    other = open_source(DataSection(source="owner/name", validation_fraction=0.5))
    assert first.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n\n", "holds no records"),
        ("a.jsonl", b'{"text": ', r"Line 1 of .*a\.jsonl is not valid JSON"),
        ("a.jsonl", b'{"body": "x"}\n', "no column 'text'; its columns are body. Set text_column"),
        ("a.json", b"[]", "holds no records"),
        ("a.json", b'{"data": [{"text": "x"}]}', r"no column 'text'.* The records seem to lie in 'data'"),
        ("a.txt", b"one\ncaf\xe9\n", r"Line 2 of .*a\.txt is not text in UTF-8"),
        ("a.parquet", b"PAR1", "cannot be read"),
        ("a.txt", b"one line\n", "holds 1 records, too few to hold 1 out"),
        ("a.md", b"x", "not a supported kind of text file"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        open_source(DataSection(source=str(tmp_path / name))).split()
    assert "\n" not in str(caught.value)


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
def test_a_record_of_a_hub_data_set_is_named(monkeypatch, streaming):
    def load_dataset(*arguments, **options):
        loaded = datasets.Dataset.from_dict({"text": ["a", "b", None]})
        return loaded.to_iterable_dataset() if options["streaming"] else loaded

    monkeypatch.setattr(sources.datasets, "load_dataset", load_dataset)
    data = DataSection(source="owner/name", streaming=streaming, tokenizer="given", validation_documents=1)
    with pytest.raises(UserError, match=r"Record 3 of owner/name \(train\) holds null in its column 'text'"):
        list(open_source(data).split().training)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "json", "parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_characters_of_patterns_in_a_path_are_characters(files, kind, streaming):
    folder = files / "run [1] *?{a,b}"
    folder.mkdir()
    path = (files / f"a.{kind}").rename(folder / f"[x] a!.{kind}")
    options = {"streaming": True, "tokenizer": "given", "validation_documents": 1} if streaming else {}
    for source in (path, folder):
        assert len(list(open_source(DataSection(source=str(source), **options)).split().training)) == len(RECORDS) - 1


def test_changed_files_are_read_again(files):
    for text in ("first", "second"):
        (files / "a.jsonl").write_text(json.dumps({"text": text}) + "\n" + json.dumps({"text": "other"}) + "\n")
        assert list(open_source(DataSection(source=str(files / "a.jsonl"))).split().validation) == [text]


def test_validation_text_must_not_lie_in_the_training_text(files):
    (files / "all").mkdir()
    for name in ("train.jsonl", "valid.jsonl"):
        (files / "all" / name).write_bytes((files / "a.jsonl").read_bytes())
    data = DataSection(source=str(files / "all"), validation_source=str(files / "all" / "valid.jsonl"))
    with pytest.raises(UserError, match=r"valid\.jsonl is in data\.source and in data\.validation_source"):
        open_source(data)
    same = DataSection(source=str(files / "a.jsonl"), validation_source=str(files / "a.jsonl"))
    assert len(list(open_source(same).split().validation)) == len(RECORDS)


def test_rows_are_made_of_records_with_their_places(files):
    def row(place, record):
        return {"place": str(place), "text": record["text"].upper()}

    rows = Rows(
        row,
        ("place", "text"),
        "upper",
        datasets.Features.from_dict({name: {"dtype": "string", "_type": "Value"} for name in ("place", "text")}),
    )
    for kind, unit in (("jsonl", "Line"), ("parquet", "Record")):
        source = open_source(DataSection(source=str(files / f"a.{kind}"), validation_documents=2))
        training, held_out = source.rows(rows)
        assert held_out[1] == {"place": f"{unit} 2 of {files / f'a.{kind}'}", "text": "DOCUMENT 1"}
        assert training[0]["place"].startswith(f"{unit} 3 of")
        assert training.column_names == ["place", "text"]
        assert source.first_records()[0]["text"] == "document 0"
        assert len(list(source.documents())) == len(RECORDS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "stdlib", "streaming": True}, "needs a tokenizer"),
        (
            {"source": "stdlib", "streaming": True, "tokenizer": "given"},
            "streaming does not apply to the standard library",
        ),
        ({"source": "stdlib", "validation_source": "a.txt"}, "validation_source does not apply"),
        ({"source": "DIRECTORY/a.txt", "subset": "english"}, "subset does not apply to local files"),
        ({"source": "DIRECTORY/a.txt", "validation_source": "DIRECTORY/a.jsonl"}, "files of one kind"),
        ({"source": "DIRECTORY"}, "mixes kinds of files"),
        ({"source": "DIRECTORY/empty"}, "holds no .txt, .jsonl, .json, .parquet file"),
        ({"source": "DIRECTORY/a.txt", "streaming": True, "tokenizer": "given"}, "set data.validation_documents"),
    ],
)
def test_options_that_contradict_each_other_are_named(files, options, message):
    (files / "empty").mkdir()
    options = {
        name: value.replace("DIRECTORY", str(files)) if isinstance(value, str) else value
        for name, value in options.items()
    }
    with pytest.raises(UserError, match=message):
        open_source(DataSection(**options)).split()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no text file '.*nowhere\.txt'"):
        open_source(DataSection(source=str(tmp_path / "nowhere.txt")))


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch):
    def load_dataset(*arguments, **options):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'owner/name' doesn't exist\non the Hub")

    monkeypatch.setattr(sources.datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match="owner/name cannot be read: Dataset 'owner/name' doesn't exist on the Hub"):
        open_source(DataSection(source="owner/name"))


def test_a_stream_is_not_read_to_be_named(tmp_path, monkeypatch):
    """Its files may be far larger than what a run reads of them."""
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\n' * 20)
    data = DataSection(source=str(file), tokenizer="gpt2", validation_documents=2)
    name = sources.content_of(data)
    monkeypatch.setattr(sources, "file_digest", lambda file: pytest.fail("it was read"))
    stream = dataclasses.replace(data, streaming=True)
    assert sources.content_of(stream) is None
    next(iter(open_source(stream).split().training))
    monkeypatch.undo()
    file.write_text('{"text": "other"}\n' * 20)
    assert sources.content_of(data) != name
