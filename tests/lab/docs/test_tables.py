import inspect
import re

import pytest

from lab.docs import tables
from tests.docs.pages import PAGES, ROOT

HELPERS = {"result", "mebibytes", "quartiles", "spread", "show", "peaks_by_depth"}
FUNCTIONS = {
    name: function
    for name, function in vars(tables).items()
    if inspect.isfunction(function) and function.__module__ == tables.__name__ and not name.startswith("_")
}


def written():
    """The calls on all pages and in the figure, with the text behind each."""
    text = "\n".join([*PAGES.values(), (ROOT / "docs/memory.svg").read_text(encoding="utf-8")])
    return re.findall(
        r"<!-- \[\[\[cog tables\.(\w+)\((.*?)\)\]\]\] -->\n(.*?) *<!-- \[\[\[end\]\]\] -->", text, re.DOTALL
    )


@pytest.mark.parametrize(("name", "argument", "text"), written())
def test_the_figures_of_a_page_are_those_of_committed_results(name, argument, text, capsys):
    FUNCTIONS[name](*filter(None, [argument.strip('"')]))
    printed = capsys.readouterr().out
    assert [line.strip() for line in printed.strip().splitlines()] == [
        line.strip() for line in text.strip().splitlines()
    ]


def test_every_table_is_on_a_page():
    assert {name for name, _, _ in written()} == FUNCTIONS.keys() - HELPERS


def test_a_table_has_a_row_for_every_result(capsys):
    tables.show("layers | peak", [(4, tables.mebibytes(7 * 2**20)), (64, tables.mebibytes(339 * 2**20))])
    assert capsys.readouterr().out == "\n| layers | peak |\n|---|---|\n| 4 | 7.0 MiB |\n| 64 | 339 MiB |\n\n"


def test_shares_have_their_spread():
    assert tables.spread([0.01]) == "+1.00%"
    assert tables.spread([0.01, 0.03]) == "+2.00% (+1.00% to +3.00%)"


def test_a_fault_shows_the_policies_under_which_something_else_happens():
    right = {"result": "right", "seen": "equal", "sentence": ""}
    row = {"result": "refused", "seen": "UserError", "sentence": "Why"}
    assert tables._elsewhere({**row, "policies": {"rebuild": row, "offload": {**row, "sentence": "Why not"}}}) == ""
    policies = {"rebuild": row, "offload": right, "checkpoint": right}
    assert tables._elsewhere({**row, "policies": policies}) == " Under `offload`, `checkpoint`: No harm: equal."
