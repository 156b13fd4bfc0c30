import dataclasses
import io

import pytest
from rich.console import Console

from revformers.cli.plan_table import plan_table
from revformers.models.update_predictor import PredictorForm
from revformers.planning.setups import Choices, budgeted
from tests.cli.example_plan import example_plan


def shown(plan):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(plan_table(plan, "h100"))
    return console.export_text()


@pytest.mark.parametrize(
    ("memory", "sizes", "device"),
    [(2**26, 2**20, "64.0 MiB"), (2**31, 2**20, "2,048 MiB"), (2**36, 2**30, "64.0 GiB")],
)
def test_figures_are_in_a_unit_in_which_they_differ(memory, sizes, device):
    text = shown(example_plan(memory, sizes))
    assert "5,000,000 parameters, 4,000,000 trained" in text
    assert "weights 20.0," in text
    assert f"of {device}" in text
    assert f"{device[-3:]}, one sequence of 512 tokens; time as predicted for h100" in text


def test_every_setup_has_a_row_that_fits_80_characters():
    lines = shown(example_plan()).splitlines()
    assert max(map(len, lines)) <= 80
    rows = {line.split()[0].strip(","): line.split() for line in lines if line.split()[:1]}
    assert rows["offload"] == ["offload", "4.00", "0.00", "1.50", "0.00", "25.5", "7.00", "1,234", "999,936", "1.30"]
    assert rows["rebuild"][:3] == ["rebuild,", "2", "bits"]
    assert rows["rebuild"][-3:] == ["12", "4,096", "1.46"]


def test_a_million_tokens_and_more_fit_the_row():
    plan = example_plan()
    plan.setups[0] = dataclasses.replace(plan.setups[0], largest_batch=2225, longest_context=1_127_168)
    lines = shown(plan).splitlines()
    assert max(map(len, lines)) <= 80
    (row,) = (line.split() for line in lines if line.startswith(" store"))
    assert row[-4:] == ["2,225", "1.13", "M", "1.00"]


def test_a_budget_has_no_context_and_the_batch_of_checkpointing():
    plan = example_plan()
    assert "budget" not in shown(plan)
    plan.setups.append(dataclasses.replace(plan.setups[2], setup=budgeted(2**20), longest_context=None))
    text = shown(plan)
    (row,) = (line.split() for line in text.splitlines() if line.startswith(" budget, 0 bits"))
    assert row[-3:] == ["12", "-", "1.46"]
    assert "budget: at the largest batch of checkpointing" in text


def test_notes_below_the_table_say_what_rows_have_in_common_and_what_sets_one_apart():
    plan = example_plan()
    form = PredictorForm(("state", "update"))
    plan.setups[2] = dataclasses.replace(plan.setups[2], setup=dataclasses.replace(plan.setups[2].setup, mlp_tile=2048))
    text = shown(dataclasses.replace(plan, choices=Choices((2,), "branch", form)))
    assert max(map(len, text.splitlines())) <= 80
    assert "rebuild, 2 bits*" in text
    for note in (
        "rebuilt by branch",
        "with update predictors of state, update",
        "* in MLP tiles of 2,048 tokens, without which not one sequence fits",
    ):
        assert note in " ".join(text.split())
    assert "in MLP tiles of 64 tokens" in shown(dataclasses.replace(example_plan(), choices=Choices((2,), mlp_tile=64)))
