import json

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.training.conftest import cache, one_thread  # noqa: F401 - fixtures for every test here

RECORDS = [f"document {number}" for number in range(20)]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"{record}\n" for record in RECORDS))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": record, "id": 1}) + "\n" for record in RECORDS))
    (tmp_path / "a.json").write_text(json.dumps([{"text": record, "id": 1} for record in RECORDS]))
    pa.parquet.write_table(pa.table({"text": RECORDS}), tmp_path / "a.parquet")
    return tmp_path


def undecodable(values):
    """Return a column of text with the given bytes, which need not be UTF-8."""
    array = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(array), array.buffers())


def texts_in(*columns):
    """Return the types of columns of text."""
    return datasets.Features({name: datasets.Value("string") for name in columns})
