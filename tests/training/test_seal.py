import pytest

from revformers.training.seal import SEAL_NAME, facts_of, fault_of, is_sealed, seal


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "weights").write_bytes(bytes(1000))
    (tmp_path / "part" / "state").write_text("state")
    assert not is_sealed(tmp_path)
    assert "is missing or damaged" in fault_of(tmp_path)
    seal(tmp_path, processes=2)
    return tmp_path


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def test_a_whole_folder_has_no_fault(folder):
    assert is_sealed(folder)
    assert fault_of(folder) is None
    assert facts_of(folder)["processes"] == 2


@pytest.mark.parametrize(
    ("harm", "file", "fault"),
    [
        (flip_a_bit, "weights", "is damaged"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "weights", "is damaged"),
        (lambda file: file.unlink(), "part/state", "is missing"),
        (lambda file: file.write_text("{}"), SEAL_NAME, "is missing or damaged"),
        (lambda file: file.write_text('{"sha'), SEAL_NAME, "is missing or damaged"),
        (lambda file: file.write_text("[1]"), SEAL_NAME, "is missing or damaged"),
    ],
)
def test_damage_is_found_and_the_file_named(folder, harm, file, fault):
    harm(folder / file)
    assert fault_of(folder).startswith(f"{folder / file} {fault}")
