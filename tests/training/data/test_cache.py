from pathlib import Path

import pytest

from revformers.training.data.cache import cache_directory, digest, file_digest, written_whole


def test_the_directory_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("REVFORMERS_CACHE", str(tmp_path / "chosen"))
    assert cache_directory() == tmp_path / "chosen"
    monkeypatch.delenv("REVFORMERS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "revformers"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "revformers"


def test_digests_tell_values_apart(tmp_path):
    assert digest(1, {"a": 2, "b": 3}) == digest(1, {"b": 3, "a": 2})
    assert digest(["a", "b"]) != digest(["ab"])
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("y")
    assert file_digest(tmp_path / "a") != file_digest(tmp_path / "b")


def test_a_directory_appears_whole(tmp_path):
    target = tmp_path / "cache" / "name"
    with written_whole(target) as staging:
        (staging / "file").write_text("x")
        assert not target.exists()
    assert (target / "file").read_text() == "x"
    assert [path.name for path in target.parent.iterdir()] == ["name"]


def test_nothing_is_left_of_a_failure(tmp_path):
    def fail():
        with written_whole(tmp_path / "name") as staging:
            (staging / "file").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_processes_stays(tmp_path):
    target = tmp_path / "name"
    with written_whole(target) as late:
        (late / "file").write_text("late")
        with written_whole(target) as early:
            (early / "file").write_text("early")
    assert (target / "file").read_text() == "early"
    assert [path.name for path in tmp_path.iterdir()] == ["name"]
