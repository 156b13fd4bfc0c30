"""Every file of source has the file of tests that bears its name."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src" / "revformers"
PACKAGES = {
    "activations": "activations/test_policies.py",
    "analysis": "analysis/test_analyze.py",
    "dynamics": "dynamics/test_dynamics.py",
    "engine": "engine/test_vector_math.py",
    "engine/ops": "engine/ops/test_operators.py",
    "models/families": "models/test_families.py",
    "": "test_import.py",
}
"""The tests of packages that are more than their text."""


def mirrored(file: Path) -> Path:
    """Return where the tests of a file of source are."""
    path = file.relative_to(SOURCE)
    if path.stem == "__init__":
        return TESTS / PACKAGES["" if path.parent == Path() else path.parent.as_posix()]
    return TESTS / path.parent / f"test_{path.name}"


def has_code(file: Path) -> bool:
    """Whether there is more in a file than the text of its package."""
    return file.stem != "__init__" or len(ast.parse(file.read_text()).body) > 1


def test_every_file_of_source_has_its_tests():
    files = [file for file in SOURCE.rglob("*.py") if has_code(file)]
    assert len(files) > 100
    assert [str(file.relative_to(SOURCE)) for file in files if not mirrored(file).exists()] == []
