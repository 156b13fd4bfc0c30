import json
import os
from pathlib import Path

import pytest

from revformers.errors import UserError
from revformers.files import check_place, write_json, write_text, written_whole


def test_files_are_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    reference = tmp_path / "reference"
    reference.touch()
    assert path.stat().st_mode == reference.stat().st_mode


def test_json_holds_null_for_a_number_that_is_not_finite(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [float("nan"), {"b": (float("-inf"), 1.5)}], "c": float("inf")})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {"a": [None, {"b": [None, 1.5]}], "c": None}


def test_directories_are_replaced_whole(tmp_path):
    target = tmp_path / "model"
    with written_whole(target) as staging:
        staging.mkdir()
        (staging / "old").touch()
    with pytest.raises(KeyboardInterrupt), written_whole(target):
        raise KeyboardInterrupt
    assert (target / "old").exists()
    with written_whole(target) as staging:
        staging.mkdir()
        (staging / "new").touch()
    assert [file.name for file in target.iterdir()] == ["new"]
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_directory_appears_whole(tmp_path):
    target = tmp_path / "cache" / "name"
    with written_whole(target) as staging:
        staging.mkdir()
        (staging / "file").write_text("x")
        assert not target.exists()
    assert (target / "file").read_text() == "x"
    assert [path.name for path in target.parent.iterdir()] == ["name"]


def test_nothing_is_left_of_a_failure(tmp_path):
    def fail():
        with written_whole(tmp_path / "name") as staging:
            staging.mkdir()
            (staging / "file").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_processes_stays(tmp_path):
    target = tmp_path / "name"
    with written_whole(target, keep=True) as late:
        late.mkdir()
        (late / "file").write_text("late")
        with written_whole(target, keep=True) as early:
            early.mkdir()
            (early / "file").write_text("early")
    assert (target / "file").read_text() == "early"
    assert [path.name for path in tmp_path.iterdir()] == ["name"]


def test_a_directory_is_no_place_for_a_file_and_keeps_its_content(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").touch()
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "data", "text")
    assert (tmp_path / "data" / "precious").exists()


def test_a_device_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    check_place(pipe)
    write_text(pipe, "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.parametrize("directory", [False, True])
def test_places_that_take_nothing_are_refused_before_the_work(tmp_path, directory, monkeypatch):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "below", Path("/proc/nowhere"), tmp_path / ("long" * 99) / "name"):
        with pytest.raises(UserError, match="Nothing can be written to"):
            check_place(path, directory=directory)
    with pytest.raises(UserError, match="is a"):
        check_place(tmp_path / ("file" if directory else ""), directory=directory)
    good = (tmp_path / "new", tmp_path / "a" / "b" / "c", tmp_path / ("" if directory else "file"))
    for path in good:
        check_place(path, directory=directory)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    (tmp_path / "link").symlink_to(tmp_path / "away")
    with pytest.raises(UserError, match=r"link is a symbolic link to .*away, which does not exist"):
        check_place(tmp_path / "link", directory=directory)
    (tmp_path / "away").symlink_to(tmp_path / ("" if directory else "file"))
    check_place(tmp_path / "link", directory=directory)

    monkeypatch.setattr("revformers.files.tempfile.TemporaryFile", full)
    for path in good:
        with pytest.raises(UserError, match="No space left on device"):
            check_place(path, directory=directory)
