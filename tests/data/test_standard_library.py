import pytest

from revformers.data.standard_library import (
    StandardLibraryFile,
    fingerprint,
    split_by_file,
    standard_library_files,
)
from revformers.errors import UserError


@pytest.fixture(scope="module")
def files():
    return standard_library_files()


def test_it_is_the_source_and_the_documentation_of_this_python(files):
    by_path = {file.path: file.text for file in files}
    assert "def dumps(" in by_path["json/__init__.py"]
    assert list(by_path) == sorted(by_path)
    assert sum(len(text) for text in by_path.values()) > 4_000_000
    assert not any("site-packages" in path or "/tests/" in path or path.startswith("test/") for path in by_path)


def test_documentation_is_plain_text(files):
    pytest.importorskip("pydoc_data.topics")
    (topic,) = (file.text for file in files if file.path == "pydoc_data/topics/while.txt")
    assert '"while" statement' in topic
    assert "\\n" not in topic


def test_other_files_do_not_move_a_file_to_the_other_side(files):
    training, validation = split_by_file(files, 0.05)
    assert len(training) + len(validation) == len(files)
    assert 0.02 < len(validation) / len(files) < 0.1
    assert set(split_by_file(files[::2], 0.05)[1]) == set(validation) & set(files[::2])


def test_the_fingerprint_is_that_of_paths_and_text():
    file = StandardLibraryFile("a.py", "x")
    names = {
        fingerprint([file]),
        fingerprint([StandardLibraryFile("b.py", "x")]),
        fingerprint([StandardLibraryFile("a.py", "y")]),
        fingerprint([file, file]),
    }
    assert len(names) == 4


def test_declared_encodings_are_heeded_and_empty_files_left_out(tmp_path):
    (tmp_path / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'é'\n".encode("latin-1"))
    (tmp_path / "empty.py").write_text("\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "left_out.py").write_text("x = 1")
    (tmp_path / "_sysconfigdata_linux.py").write_text("x = 1")
    (file,) = standard_library_files(tmp_path)
    assert file.path == "latin.py"
    assert "é" in file.text


def test_a_python_without_source_files_is_named(tmp_path):
    with pytest.raises(UserError, match="no source files"):
        standard_library_files(tmp_path)
