from dataclasses import dataclass

import pytest

from revformers.cli.options import read_options, show_help


@dataclass(frozen=True)
class Options:
    """Do one thing.

    Attributes:
        first_name: The name.

    """

    first_name: str = "none"


def test_options_are_the_fields_of_a_dataclass():
    assert read_options(Options, "tool", ["--first_name", "a"]) == Options("a")


@pytest.mark.parametrize("description", [None, "Do another."])
def test_the_help_describes_the_command_and_its_options(description, capsys):
    with pytest.raises(SystemExit) as stop:
        show_help("tool", Options, Options("its default"), description)
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(words in shown for words in ("usage: tool", description or "Do one thing.", "The name.", "its default"))
    assert ("Do one thing." in shown) is (description is None)
