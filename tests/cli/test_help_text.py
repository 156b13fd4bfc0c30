import pytest

from revformers.cli.help_text import listing, paragraphs, wrapped_report


@pytest.fixture(autouse=True)
def columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")


def test_paragraphs_are_wrapped_and_examples_are_not():
    text = "One sentence that is longer than a line.\n\n  an --example that is longer than a line"
    first, second = paragraphs(text).split("\n\n")
    assert first == "One sentence that is longer\nthan a line."
    assert second == "  an --example that is longer than a line"


def test_a_purpose_is_wrapped_beside_its_name():
    shown = listing({"run": "one of several things", "A=1": "another"})
    assert shown.splitlines() == ["  run  one of several things", "  A=1  another"]
    assert listing({"run": "one of a number of things"}).splitlines() == ["  run  one of a number of", "       things"]


def test_a_line_of_a_report_continues_where_its_value_begins():
    text = "equal to the bit\n  loss  1.5, which is a little more than 1.4\n  One remark that is longer than a line."
    assert wrapped_report(text).splitlines() == [
        "equal to the bit",
        "  loss  1.5, which is a little",
        "        more than 1.4",
        "  One remark that is longer",
        "  than a line.",
    ]
