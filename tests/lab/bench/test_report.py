import json
import re
from html.parser import HTMLParser

import pytest

from lab.bench.report import write_report
from tests.lab.bench.example import comparison

HISTORY = [
    {"step": 1, "seconds": 0.4, "loss": 8.31},
    {"step": 20, "seconds": 8.0, "loss": 5.5},
    {"step": 20, "seconds": 9.0, "eval_loss": 5.77},
]
METRICS = {
    "training_loss": 5.5,
    "validation_loss": 5.7712,
    "validation_perplexity": 320.9,
    "steps": 20,
    "tokens": 40960,
    "seconds": 9.0,
    "tokens_per_second": 4551.1,
    "parameters": 6099648,
}
SAMPLE = 'def first():\n    return "<script>alert(1)</script>" & x\n' + "-" * 80 + "\nclass Second: ...\n"
SECTIONS = ["training", "sample", "gradients", "arms", "depth", "dynamics", "reproduce"]
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Reads a page strictly: every element that opens closes, in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sections, self.attributes, self.tags = [], [], [], set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += [(tag, *attribute) for attribute in attributes]
        if tag == "section":
            self.sections.append(dict(attributes)["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def write_run(directory, *, history=HISTORY, metrics=METRICS, sample=SAMPLE, measured=None):
    directory.mkdir(exist_ok=True)
    for name, content in (("history", history), ("metrics", metrics), ("comparison", measured or comparison())):
        if content:
            (directory / f"{name}.json").write_text(json.dumps(content))
    if sample:
        (directory / "sample.txt").write_text(sample)
    return directory


def report(directory, tmp_path):
    out = tmp_path / "new" / "report.html"
    write_report(directory, out, ["report", str(directory), "--out", str(out)])
    return out.read_text(encoding="utf-8")


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return report(write_run(tmp_path / "run"), tmp_path)


def test_every_section_is_there(page):
    assert Page(page).sections == SECTIONS
    assert page.count("<svg") == 4
    assert "Not measured" not in page


def test_it_loads_nothing_and_runs_nothing(page):
    parsed = Page(page)
    assert "://" not in page
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    assert "@import" not in page
    assert not parsed.tags & {"script", "link", "img", "iframe", "object"}
    links = [value for _, name, value in parsed.attributes if name in ("src", "href", "xlink:href", "action")]
    assert all(value.startswith("#") for value in links)


def test_it_is_readable_on_a_phone_and_in_the_dark(page):
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "prefers-color-scheme: dark" in page
    tables = [match.start() for match in re.finditer("<table>", page)]
    assert tables
    assert all(page[:start].endswith('<div class="scroll" tabindex="0">') for start in tables)
    # Every colour that a plot asks for has a value, in light and in dark.
    for name in set(re.findall(r"var\((--[\w-]+)\)", page)):
        assert page.count(f"{name}: #") == 2


def test_what_the_model_wrote_is_escaped(page):
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert ">class Second: ...</pre>" in page


def test_the_figures_are_there(page):
    for figure in ("400 MiB", "120 MiB", "100 MiB", "630 ms", "5.771", "6.125000", "Example CPU", "0123456789ab"):
        assert figure in page
    assert "p[l+1] = 2 p[l] - p[l-1] + f(p[l])" in page
    assert "No branches here." in page


def test_the_commands_reproduce_it(page):
    assert "revformers pretrain run/recipe.yaml" in page
    assert comparison()["command"] in page
    assert "python -m lab report run --out new/report.html" in page


def test_wrong_gradients_are_not_prettied(tmp_path):
    measured = comparison()
    measured["arms"]["verification"]["bit_exact"] = False
    page = report(write_run(tmp_path / "run", measured=measured), tmp_path)
    assert "NOT exact" in page
    assert '<b class="bad">No.</b>' in page
    assert "Yes." not in page


def test_depth_that_was_not_measured_says_why(tmp_path):
    measured = comparison() | {"depth": {"unavailable": "Twelve blends for four layers."}}
    page = report(write_run(tmp_path / "run", measured=measured), tmp_path)
    assert Page(page).sections == SECTIONS
    assert "Twelve blends for four layers." in page


def test_a_comparison_without_a_run(tmp_path):
    page = report(write_run(tmp_path / "run", history=None, metrics=None, sample=None), tmp_path)
    assert Page(page).sections == SECTIONS
    assert "No training run is in" in page
    assert "The run wrote no sample." in page


def test_a_run_without_a_comparison(tmp_path):
    directory = write_run(tmp_path / "run")
    (directory / "comparison.json").unlink()
    page = report(directory, tmp_path)
    assert Page(page).sections == SECTIONS
    assert page.count("Not measured.") == 4
    assert "python -m lab compare run/recipe.yaml --out run" in page


def test_nothing_to_report_and_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds neither"):
        report(tmp_path, tmp_path)
    (tmp_path / "comparison.json").write_text("{")
    with pytest.raises(ValueError, match=r"comparison\.json is not JSON"):
        report(tmp_path, tmp_path)
