"""Data sets that `datasets` loads, and its errors."""

import datasets
import pytest

from revformers.data.section import DataSection
from revformers.data.sources import open_source
from revformers.errors import UserError
from tests.data.conftest import RECORDS


@pytest.mark.parametrize("kind", ["txt", "jsonl", "json", "parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_characters_of_patterns_in_a_path_are_characters(files, kind, streaming):
    folder = files / "run [1] *?{a,b}"
    folder.mkdir()
    path = (files / f"a.{kind}").rename(folder / f"[x] a!.{kind}")
    options = {"streaming": True, "tokenizer": "given", "validation_documents": 1} if streaming else {}
    for source in (path, folder):
        assert len(list(open_source(DataSection(source=str(source), **options)).split().training)) == len(RECORDS) - 1


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch):
    def load_dataset(*arguments, **options):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'owner/name' doesn't exist\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match="owner/name cannot be read: Dataset 'owner/name' doesn't exist on the Hub"):
        open_source(DataSection(source="owner/name"))
