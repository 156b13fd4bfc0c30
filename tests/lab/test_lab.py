"""The package `lab` itself."""

import subprocess
import sys

PROGRAM = """
import lab, logging
logging.getLogger("torchao").error("Failed to load a kernel")
logging.getLogger("torchao").error("Something else")
"""


def test_modules_of_the_laboratory_start_without_what_other_libraries_say_on_import():
    assert subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True).stderr == "Something else\n"
