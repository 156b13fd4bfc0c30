import subprocess
import sys

import pytest

import revformers as rf


def test_importing_the_library_imports_nothing_that_only_some_need():
    code = (
        "import sys, revformers; print([name for name in ('datasets', 'transformers.trainer_callback', 'peft', 'trl') "
        "if name in sys.modules], 'ReversibleCallback' in revformers.__all__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[-2] == "[] True"


def test_every_public_name_is_there():
    assert all(getattr(rf, name) is not None for name in rf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'reversible_callback'"):
        rf.reversible_callback  # noqa: B018
