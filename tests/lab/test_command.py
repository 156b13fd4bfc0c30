import subprocess
import sys

import pytest

from lab.command import as_command
from revformers.errors import UserError


def test_the_exit_code_is_that_of_the_study():
    as_command(lambda: None)
    with pytest.raises(SystemExit) as stop:
        as_command(lambda: 1)
    assert stop.value.code == 1


@pytest.mark.parametrize("error", [UserError("There is no text."), FileNotFoundError("There is no text.")])
def test_a_mistake_of_the_user_is_one_sentence(error, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        as_command(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith(": There is no text.\n")


def test_a_mistake_of_ours_keeps_its_traceback():
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        as_command(main)


@pytest.mark.thorough
def test_a_study_is_named_as_it_was_called():
    words = ["lab.studies.stability", "nowhere", "--fresh", "nowhere", "--text", "nowhere.txt", "--output", "new.json"]
    ended = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("python -m lab.studies.stability: ")
    assert "Traceback" not in ended.stderr
