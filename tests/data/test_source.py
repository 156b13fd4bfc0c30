"""Rows, and what is held out of them."""

import datasets

from revformers.data.section import DataSection
from revformers.data.source import Rows
from revformers.data.sources import open_source
from tests.data.conftest import RECORDS


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
