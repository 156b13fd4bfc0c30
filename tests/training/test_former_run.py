import shutil
from pathlib import Path

import pytest

from revformers.files import remove_partial, write_text
from revformers.training.former_run import FOLDER, FormerRun
from revformers.training.seal import seal

NAMES = ("model", "metrics.json", "checksums.json", "recipe.yaml")
FORMER = {"checkpoint-4/weights", "damaged-checkpoint-8/weights", "model/weights", "metrics.json", "recipe.yaml"}


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def former(tmp_path):
    for name in FORMER:
        write_text(tmp_path / name, "former")
    seal(tmp_path / "checkpoint-4")
    write_text(tmp_path / "notes.txt", "mine")
    return FormerRun(tmp_path, NAMES)


class Killed(Exception):
    pass


def killed_at(monkeypatch, call, work):
    """Do `work`, and kill it at the given call that renames or deletes; return whether there were so many."""
    count = 0

    def counting(method):
        def counted(path, *arguments, **options):
            nonlocal count
            count += 1
            if count == call:
                raise Killed
            return method(path, *arguments, **options)

        return counted

    with monkeypatch.context() as patched:
        for name in ("rename", "unlink", "rmdir", "mkdir"):
            patched.setattr(Path, name, counting(getattr(Path, name)))
        patched.setattr(shutil, "rmtree", counting(shutil.rmtree))
        try:
            work()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("call", range(1, 20))
def test_a_kill_at_any_moment_loses_nothing(former, tmp_path, monkeypatch, call):
    """While the former run is set aside, and while it is put back and the new run's files are removed."""
    before = files(tmp_path)

    def overwrite():
        former.set_aside()
        for name in ("model/weights", "checkpoint-2/weights", "recipe.yaml"):
            write_text(tmp_path / name, "new")
        former.settle()

    killed_at(monkeypatch, call, overwrite)
    FormerRun(tmp_path, NAMES).settle()
    remove_partial(tmp_path)
    assert files(tmp_path) == before


@pytest.mark.parametrize("call", range(1, 8))
def test_a_kill_while_the_former_run_goes_leaves_the_new_one(former, tmp_path, monkeypatch, call):
    former.set_aside()
    assert former.kept
    assert files(tmp_path).keys() == {f"{FOLDER}/{name}" for name in FORMER | {"checkpoint-4/checksums.json"}} | {
        "notes.txt"
    }
    for name in ("checkpoint-2/weights", "recipe.yaml"):
        write_text(tmp_path / name, "new")
    seal(tmp_path / "checkpoint-2")
    killed_at(monkeypatch, call, former.settle)
    assert not FormerRun(tmp_path, NAMES).settle()
    remove_partial(tmp_path)
    assert files(tmp_path).keys() == {
        "checkpoint-2/weights",
        "checkpoint-2/checksums.json",
        "recipe.yaml",
        "notes.txt",
    }


def test_without_a_run_nothing_is_set_aside(tmp_path):
    former = FormerRun(tmp_path, NAMES)
    former.set_aside()
    assert not former.kept
    assert not former.settle()
    former.discard()
