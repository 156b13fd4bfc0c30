import importlib.util
import re
import shlex

import pytest

from lab.docs import markdown, reproduction
from tests.docs.pages import PAGES, ROOT

PAGE = PAGES["docs/science/reproduction.md"]
COMMANDS = sorted({*re.findall(r"`((?:python -m|revformers|make) [^`]+)`", PAGE)})


def words_and_files(command):
    """The words of a command, and the files of the repository among them."""
    words = shlex.split(command)
    files = [word for word in words if word.startswith(("recipes/", "tests/"))]
    return words, files


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_page_exist(command):
    words, files = words_and_files(command)
    assert [file for file in files if not (ROOT / file).exists()] == []
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "revformers":
        assert (ROOT / f"src/revformers/cli/{words[1]}.py").is_file()
    elif words[2] == "lab":
        assert (ROOT / f"lab/commands/{words[3]}.py").is_file()
    else:
        assert importlib.util.find_spec(words[2])


@pytest.mark.parametrize(("name", "command"), reproduction.commands_of_results())
def test_every_result_has_a_command_of_today_whose_options_exist(name, command):
    words, files = words_and_files(command)
    assert [file for file in files if not (ROOT / file).exists()] == []
    assert words[:2] == ["python", "-m"]
    if words[2] == "lab":
        assert (ROOT / f"lab/commands/{words[3]}.py").is_file()
        return
    module = importlib.util.find_spec(words[2])
    assert module, name
    source = "".join(path.read_text() for path in sources(module))
    options = [word.removeprefix("--").partition(".")[0] for word in words[3:] if word.startswith("--")]
    assert [name for name in options if f'"--{name}"' not in source and not re.search(rf"    {name}: ", source)] == []


def sources(module):
    path = ROOT / module.name.replace(".", "/")
    return path.glob("*.py") if path.is_dir() else [path.with_suffix(".py")]


def test_an_old_command_is_named_as_it_is_called_today():
    """The results of the first months recorded names that the laboratory no longer has."""
    commands = dict(reproduction.commands_of_results())
    assert commands.keys() == {file.stem for file in markdown.RESULTS.glob("*.json")}
    old = [name for name in commands if "benchmarks/" in markdown.result(name)["command"]]
    assert old, "nothing would be tested"
    assert not [name for name in old if "benchmarks" in commands[name]]


def test_every_figure_of_others_says_where_it_was_read():
    assert reproduction.PAPER["sources"].keys() >= {
        part["source"] for part in reproduction.PAPER.values() if isinstance(part, dict) and "source" in part
    }
    assert all(one["repository"].count("/") == 1 for one in reproduction.PAPER["reproductions"])


def test_the_line_through_the_table_is_the_one_through_its_ends(capsys):
    """24 GB hold 6 sequences and 80 GB hold 26, so that one takes about 2.8 GB."""
    reproduction.table_3_lines()
    stored, midpoint, _ = capsys.readouterr().out.splitlines()
    assert float(re.search(r"([\d.]+) GB a sequence", stored)[1]) == pytest.approx((80 - 24) / (26 - 6), rel=0.03)
    assert float(re.search(r"([\d.]+) GB a sequence", midpoint)[1]) == pytest.approx((80 - 24) / (257 - 58), rel=0.03)
