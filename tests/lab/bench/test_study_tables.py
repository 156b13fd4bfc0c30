"""The tables and the plot of a study, on figures made up so that each can be found again."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from lab.bench.recipe import BenchRecipe
from lab.bench.study_axis import AXES
from lab.bench.study_plot import save_plot
from lab.bench.study_tables import study_tables
from tests.lab.bench.example import quartiles

ARMS = ("plain_store", "plain_checkpoint", "plain_offload", "rebuild", "budget_checkpoint")
MEBIBYTE = 2**20


def point(arm, value, memory=None, *, size=4, peak=100, median=0.5, budget=None):
    return {
        "value": value, "memory": memory, "arm": arm, "fits": True, "layers": 4, "batch_size": size,
        "sequence_length": 512, "budget": budget, "peak": peak * MEBIBYTE, "weights_and_gradients": 900 * MEBIBYTE,
        "optimizer_states": 24 * MEBIBYTE, "resident_peak": None, "seconds": quartiles(median),
        "samples_per_second": size / median, "ratios": {"plain_checkpoint": quartiles(median / 0.5)},
        "seconds_by_round": [median], "losses": [1.0],
    }  # fmt: skip


def result(axis, values, memory=(), arms=ARMS):
    points = [
        point(arm, value, peak=100 * place + 7 * at, median=0.5 + place / 8)
        for at, value in enumerate(values, start=1)
        for place, arm in enumerate(arms, start=1)
    ]
    for at, text in enumerate(memory, start=1):
        for value in values if AXES[axis].at_every_value else [None]:
            points += [point(arm, value, text, size=8 * at * place) for place, arm in enumerate(arms, start=1)]
    sizes = [{"memory": text, "bytes": at * 2**30} for at, text in enumerate(memory, start=1)]
    return {"study": axis, "recipe": BenchRecipe().to_dict(), "points": points, "memory": sizes}


RESULTS = {
    "depth": result("depth", (16, 96), ("80GiB",)),
    "batch": result("batch", (), ("24GB", "40GB")),
    "length": result("length", (8192, 131072), ("free",)),
    "budget": result("budget", ("checkpoint", "2GiB")),
}


def shown(study):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(study_tables(study))
    return console.export_text()


@pytest.mark.parametrize("study", RESULTS.values(), ids=RESULTS)
def test_every_point_has_a_line_that_fits(study):
    text = shown(study)
    assert max(map(len, text.splitlines())) <= 100
    lines = [line for line in text.splitlines() if any(f" {arm} " in f" {line} " for arm in ARMS)]
    assert len([line for line in lines if re.search(r"\d", line)]) >= len(study["points"])
    assert "…" not in text
    assert "budget_checkpoint:20GiB" in shown(result("depth", (96,), ("80GiB",), (*ARMS, "budget_checkpoint:20GiB")))


def test_the_figures_are_those_of_the_points():
    text = shown(RESULTS["depth"])
    assert re.search(r"96 +plain_store +114 MiB +625 ms +6.4 +- +1.25 \(1.24 to 1.26\)", text)
    # The total holds weights, gradients and optimizer states, and sizes are set against storing.
    assert re.search(r"rebuild +32 +4.00 +1 GiB +64 +4.00", text)
    assert re.search(r"131,072 +plain_store +114 MiB +625 ms +3,277", shown(RESULTS["length"]))


def test_what_was_not_measured_says_why():
    study = result("depth", (16,), ("80GiB",))
    study["points"][0] = {"value": 16, "memory": None, "arm": "plain_store", "fits": False}
    study["points"][1] = {"value": 16, "memory": None, "arm": "plain_checkpoint", "fits": None}
    study["points"][5] = {"value": 16, "memory": "80GiB", "arm": "plain_store", "fits": False}
    study["points"][9] = {"value": 16, "memory": "80GiB", "arm": "budget_checkpoint", "fits": None}
    text = shown(study)
    assert re.search(r"plain_store +does not fit +- +- +-", text)
    assert re.search(r"plain_checkpoint +none equal +- +- +-", text)
    assert re.search(r"80GiB +plain_store +0 +- +does not fit", text)
    assert re.search(r"budget_checkpoint +- +- +none equal", text)
    assert re.search(r"rebuild +32 +- ", text)


@pytest.mark.parametrize(
    ("study", "sentence"),
    [
        ("batch", "A size 2% (or 1) larger does not fit."),
        ("length", "A size 2% (or 256 tokens) larger does not fit, or exceeds what the model reads."),
    ],
)
def test_why_the_largest_is_no_larger(study, sentence):
    assert sentence in " ".join(shown(result(study, (), ("24GB",))).split())


@pytest.mark.thorough
def test_budgets_are_shown_against_the_arms_at_whose_peaks_they_are():
    text = shown(RESULTS["budget"]).split("budgets at the peaks of their rivals")[1]
    assert re.search(r"plain_checkpoint +budget_checkpoint +207 MiB +507 MiB +2.25 \(", text)
    assert "2GiB" not in text, "a size has no rival"
    assert "budgets at the peaks" not in shown(RESULTS["depth"])


@pytest.mark.parametrize(("name", "panels"), [("depth", 4), ("batch", 2), ("length", 4), ("budget", 1)])
def test_a_plot_has_every_panel_and_arm(name, panels, tmp_path):
    path = tmp_path / "plot.svg"
    save_plot(RESULTS[name], path)
    text = path.read_text(encoding="utf-8")
    assert len(set(re.findall(r'id="axes_\d+"', text))) == panels
    for arm in ARMS:
        assert f">{arm}<" in text
    for ending in (".png", ".pdf"):
        save_plot(RESULTS[name], Path(path).with_suffix(ending))
        assert Path(path).with_suffix(ending).stat().st_size > 1000
