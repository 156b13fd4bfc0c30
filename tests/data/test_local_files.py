"""Which files a path names."""

import json
import os

import pytest

from revformers.data.local_files import find_files, kind_of
from revformers.errors import UserError

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


def test_links_to_folders_are_followed_once(tmp_path):
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "b.jsonl").write_bytes(LINES)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(LINES)
    for name, target in {"shards": "../elsewhere", "again": "../elsewhere/deep", "loop": "."}.items():
        (folder / name).symlink_to(target)
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    assert find_files(str(folder)) == [folder / "a.jsonl", folder / "again" / "b.jsonl"]
    (folder / ".hidden").symlink_to("../elsewhere")
    (folder / "again").unlink()
    assert find_files(str(folder)) == [folder / "a.jsonl", folder / "shards" / "deep" / "b.jsonl"]


def test_a_link_to_nothing_and_a_folder_that_cannot_be_listed_are_named(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "b.jsonl").symlink_to("nowhere.jsonl")
    with pytest.raises(UserError, match=r"b\.jsonl is a link to a file that does not exist; remove it"):
        find_files(str(tmp_path))
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "closed").mkdir()
    list_folder = os.scandir

    def refuse(folder):
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(folder))
        return list_folder(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"closed cannot be read: Permission denied\."):
        find_files(str(tmp_path))
