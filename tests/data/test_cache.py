from pathlib import Path

import pytest

from revformers.data.cache import cache_directory, digest, file_digest
from revformers.errors import UserError


def test_the_directory_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("REVFORMERS_CACHE", str(tmp_path / "chosen"))
    assert cache_directory() == tmp_path / "chosen"
    monkeypatch.delenv("REVFORMERS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "revformers"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "revformers"


def test_a_home_that_takes_nothing_is_replaced_with_a_word(monkeypatch):
    monkeypatch.delenv("REVFORMERS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nobody")
    with pytest.warns(UserWarning, match=r"Nothing can be written to /dev/null/nobody/revformers.* REVFORMERS_CACHE"):
        directory = cache_directory()
    assert directory.is_dir()
    assert cache_directory() == directory
    monkeypatch.setenv("REVFORMERS_CACHE", "/dev/null/chosen")
    with pytest.raises(UserError, match="Nothing can be written to /dev/null/chosen"):
        cache_directory()


def test_digests_tell_values_apart(tmp_path):
    assert digest(1, {"a": 2, "b": 3}) == digest(1, {"b": 3, "a": 2})
    assert digest(["a", "b"]) != digest(["ab"])
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("y")
    assert file_digest(tmp_path / "a") != file_digest(tmp_path / "b")
