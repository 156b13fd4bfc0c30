import dataclasses

import pytest

from revformers.data import local_sources, sources
from revformers.data.section import DataSection
from revformers.data.sources import open_source
from revformers.errors import UserError
from tests.data.conftest import RECORDS


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
    orders = [list(of.training) for of in (split, split, open_source(data).split(1), open_source(data).split(1))]
    assert orders[0] == orders[1]
    assert orders[2] == orders[3]
    if streaming:  # it is shuffled
        assert len({tuple(order) for order in (training, orders[0], orders[2])}) == 3
    else:
        assert orders[0] == orders[2] == training


def test_a_directory_and_validation_text_of_its_own(files):
    (files / "more").mkdir()
    for name in ("b", "c"):
        (files / "more" / f"{name}.txt").write_text(f"{name}\n")
    data = DataSection(source=str(files / "more"), validation_source=str(files / "a.txt"))
    split = open_source(data).split()
    assert list(split.training) == ["b\n", "c\n"]
    assert len(list(split.validation)) == len(RECORDS)


def test_validation_text_must_not_lie_in_the_training_text(files):
    (files / "all").mkdir()
    for name in ("train.jsonl", "valid.jsonl"):
        (files / "all" / name).write_bytes((files / "a.jsonl").read_bytes())
    data = DataSection(source=str(files / "all"), validation_source=str(files / "all" / "valid.jsonl"))
    with pytest.raises(UserError, match=r"valid\.jsonl is in data\.source and in data\.validation_source"):
        open_source(data)
    same = DataSection(source=str(files / "a.jsonl"), validation_source=str(files / "a.jsonl"))
    assert len(list(open_source(same).split().validation)) == len(RECORDS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "stdlib", "streaming": True}, "needs a tokenizer"),
        (
            {"source": "stdlib", "streaming": True, "tokenizer": "given"},
            "data.streaming cannot be set for the standard library",
        ),
        ({"source": "stdlib", "validation_source": "a.txt"}, "validation_source cannot be set"),
        (
            {"source": "DIRECTORY/a.txt", "subset": "english", "validation_split": "test"},
            r"data.subset and data.validation_split cannot .* give --data.subset none --data.validation_split none if",
        ),
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


def test_a_stream_is_not_read_to_be_named(tmp_path, monkeypatch):
    """Its files may be far larger than what a run reads of them."""
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\n' * 20)
    data = DataSection(source=str(file), tokenizer="gpt2", validation_documents=2)
    name = sources.content_of(data)
    monkeypatch.setattr(local_sources, "file_digest", lambda file: pytest.fail("it was read"))
    stream = dataclasses.replace(data, streaming=True)
    assert sources.content_of(stream) is None
    next(iter(open_source(stream).split().training))
    monkeypatch.undo()
    file.write_text('{"text": "other"}\n' * 20)
    assert sources.content_of(data) != name
