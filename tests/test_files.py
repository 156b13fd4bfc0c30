import json

import pytest

from revformers.files import write_json, write_text, written_whole


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
