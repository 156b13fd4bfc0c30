"""What other libraries print as they are imported and used does not stand in front of a command's own output."""

import logging
import subprocess
import sys
import warnings

import pytest

from revformers.cli.quiet import NOISE, quiet_imports
from tests.golden.workspace import write_workspace

COMMANDS = """
verify pretrain.yaml --length 8
plan model --memory 1GiB --sequence_length 32 --train qlora
convert model --out converted --calibration text.txt --length 32 --sequences 8 --held_out 4
pretrain pretrain.yaml
finetune finetune.yaml
"""


@pytest.mark.thorough
def test_no_command_prints_what_other_libraries_say(tmp_path):
    write_workspace(tmp_path)
    code = "import sys; from revformers.cli.main import main; [main(line.split()) for line in sys.argv[1:]]"
    lines = COMMANDS.strip().splitlines()
    result = subprocess.run([sys.executable, "-c", code, *lines], cwd=tmp_path, capture_output=True, text=True)
    said = [line for line in result.stderr.splitlines() if not line.endswith("so far")]  # on a slow machine
    assert (result.returncode, said) == (0, [])
    assert (tmp_path / "runs" / "finetune" / "metrics.json").is_file()
    assert "Failed to load" not in result.stdout


def test_what_is_silenced_is_one_message_of_a_logger(caplog):
    quiet_imports()
    for name, text in NOISE.items():
        logging.getLogger(name).warning("%s", f"before {text} after")
        logging.getLogger(name).warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"] * len(NOISE)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        quiet_imports()
        warnings.warn("`is_gradient_checkpointing` is deprecated and will be removed.", FutureWarning, stacklevel=1)
        warnings.warn("something else", FutureWarning, stacklevel=1)
    assert [str(one.message) for one in shown] == ["something else"]
