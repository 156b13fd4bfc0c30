"""Which files a path names."""

import json

from revformers.data.local_files import find_files, kind_of

THREE = [{"text": "one"}, {"text": "zwei €"}, {"text": "three"}]

LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in THREE).encode()


def test_hidden_files_are_not_read(tmp_path):
    folder = tmp_path / ".cache" / "data"  # what lies above the folder does not count
    for name in ("b.jsonl", "._b.jsonl", ".ipynb_checkpoints/b-checkpoint.jsonl", "more/a.jsonl.gz", ".DS_Store"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(LINES)
    assert find_files(str(folder)) == [folder / "b.jsonl", folder / "more" / "a.jsonl.gz"]


def test_kinds_are_suffixes_without_compression():
    names = ["a.jsonl", "a.JSON", "a.txt.gz", "a.b.parquet", "a.parquet.gz", "a.gz", "a"]
    assert [kind_of(name) for name in names] == [".jsonl", ".json", ".txt", ".parquet", ".gz", "", ""]
