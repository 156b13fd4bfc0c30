import signal
import subprocess

import pytest

from revformers.cli.exit_codes import CLOSED_PIPE, after_signal, ended
from revformers.cli.termination import Terminated


@pytest.mark.parametrize(
    ("stop", "word", "number"),
    [(KeyboardInterrupt(), "Interrupted", signal.SIGINT), (Terminated(), "Terminated", signal.SIGTERM)],
)
def test_a_command_that_a_signal_ended_has_the_exit_code_that_a_shell_gives(stop, word, number):
    code = subprocess.run(["sh", "-c", f"sh -c 'kill -{int(number)} $$'; exit $?"], check=False).returncode
    assert ended(stop) == (word, code)


def test_the_code_of_a_closed_pipe_is_that_of_its_signal():
    assert after_signal(signal.SIGPIPE) == CLOSED_PIPE
