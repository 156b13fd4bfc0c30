"""The tables and the figure of a study of pretraining, from rows whose figures are known."""

import json

import pytest

from lab.docs import markdown, pretraining
from lab.studies import pretraining_figures
from tests.lab.figures import assert_alike

ARMS = {"residual": {}, "midpoint": {}}
RUN = {
    "model": {"architecture": "llama", "config": {"num_hidden_layers": 2, "hidden_size": 8}},
    "data": {"source": "text.txt", "block_length": 16, "validation_blocks": 3},
    "training": {"max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1},
}
LOSSES = {("residual", 1): 5.0, ("residual", 2): 6.0, ("midpoint", 1): 5.25, ("midpoint", 2): 6.75}


def row(arm, seed, loss, steps=4, rate=1e-3):
    curve = [{"step": 2, "loss": 9.0}, {"step": 2, "eval_loss": 7.0 + seed}, {"step": 4, "eval_loss": loss}]
    return {
        "arm": arm,
        "seed": seed,
        "learning_rate": rate,
        "max_steps": steps,
        "validation_loss": loss,
        "parameters": 1234,
        "error": loss is None,
        "curve": curve,
    }


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setattr(markdown, "RESULTS", tmp_path)
    monkeypatch.setattr(pretraining_figures, "RESULTS", tmp_path)
    tuning = {"learning_rates": [1e-3, 2e-3], "max_steps": 2, "seed": 0}
    trials = [row("residual", 0, 7.5, 2), row("residual", 0, 7.0, 2, 2e-3), row("midpoint", 0, 8.0, 2)]
    trials += [row("midpoint", 0, None, 2, 2e-3)]
    rows = [*trials, *(row(arm, seed, loss) for (arm, seed), loss in LOSSES.items())]
    study = {"study": {"run": RUN, "arms": ARMS, "tuning": tuning, "seeds": [1, 2]}, "rows": rows}
    (tmp_path / "pretraining-x.json").write_text(json.dumps(study))
    return study


def test_arms_are_compared_seed_by_seed(study, capsys):
    pretraining.pretraining_losses("x")
    shown = capsys.readouterr().out
    assert "| residual | 1e-3 | 5.500 | 5.000 to 6.000 | - | - |" in shown
    assert "| midpoint | 1e-3 | 6.000 | 5.250 to 6.750 | +0.500 | +0.250, +0.750 |" in shown


def test_the_chosen_learning_rate_stands_out_and_diverged_trials_are_named(study, capsys):
    pretraining.pretraining_rates("x")
    shown = capsys.readouterr().out
    assert "| residual | 7.500 | **7.000** |" in shown
    assert "| midpoint | **8.000** | diverged |" in shown


def test_arms_are_compared_at_every_learning_rate_that_did_not_diverge(study, capsys):
    pretraining.pretraining_by_rate("x", "midpoint")
    assert capsys.readouterr().out == "* midpoint: +0.500 at 1e-3.\n"


def test_the_spread_of_pairs_is_that_of_their_differences(study, capsys):
    pretraining.pretraining_spread("x")
    shown = capsys.readouterr().out
    # Standard deviations of (5, 6) and (5.25, 6.75), and of (0.25, 0.75).
    assert "a standard deviation of 0.901, and its difference" in shown
    assert "the same seed one of 0.354." in shown
    assert "* not told from it: midpoint." in shown


def test_differences_are_sorted_into_those_found_and_those_not_told_from_zero(study, tmp_path, capsys):
    study["study"]["arms"] = {"residual": {}, "leapfrog": {}, "hamiltonian": {}}
    study["rows"] = [row for row in study["rows"] if row["arm"] != "midpoint"]
    for arm, difference in (("leapfrog", -1.0), ("hamiltonian", 1.0)):
        study["rows"] += [row(arm, 0, 7.0, 2), row(arm, 0, 7.0, 2, 2e-3)]
        study["rows"] += [row(arm, seed, LOSSES["residual", seed] + difference + seed / 100) for seed in (1, 2)]
    (tmp_path / "pretraining-x.json").write_text(json.dumps(study))
    pretraining.pretraining_spread("x")
    shown = capsys.readouterr().out
    assert "* found below the ordinary network: leapfrog." in shown
    assert "* not told from it: none." in shown
    assert "* found above it: hamiltonian." in shown
    (tmp_path / "pretraining-x.json").write_text(json.dumps(diverged(study, ("hamiltonian", 2))))
    pretraining.pretraining_spread("x")
    shown = capsys.readouterr().out
    assert "* found below the ordinary network: leapfrog." in shown
    assert "* not compared, because a run diverged: hamiltonian." in shown


def test_the_conditions_name_the_tokens(study, capsys):
    pretraining.pretraining_conditions("x")
    shown = " ".join(capsys.readouterr().out.split())
    assert "1,234 parameters in every arm; 4 steps of 2 x 16 tokens, 128 in all" in shown
    assert "48 tokens of validation text" in shown


def test_the_conditions_count_the_batches_of_a_step_that_are_accumulated(study, tmp_path, capsys):
    study["study"]["run"]["training"] = {**RUN["training"], "gradient_accumulation_steps": 3}
    (tmp_path / "pretraining-x.json").write_text(json.dumps(study))
    pretraining.pretraining_conditions("x")
    assert "4 steps of 6 x 16 tokens, 384 in all" in " ".join(capsys.readouterr().out.split())


def test_differences_along_the_training_are_means_over_the_seeds(study, capsys):
    pretraining.pretraining_along("x")
    assert "| dynamics | 2 steps | 4 steps |" in (shown := capsys.readouterr().out)
    assert "| midpoint | +0.000 | +0.500 |" in shown


def test_the_figure_has_every_difference_and_the_curve_of_means(study):
    left, right = pretraining_figures.figure_of(study).axes
    assert [list(line.get_xdata()) for line in left.get_lines()][:2] == [[0.25, 0.75], [0.5, 0.5]]
    assert list(right.get_lines()[0].get_ydata()) == [0.0, 0.5]


def test_a_seed_whose_ordinary_network_diverged_is_in_no_difference(study):
    (ordinary,) = (row for row in study["rows"] if (row["arm"], row["seed"]) == ("residual", 2))
    ordinary.update(validation_loss=None, error="the loss is nan", curve=[])
    left, right = pretraining_figures.figure_of(study).axes
    assert list(left.get_lines()[0].get_xdata()) == [0.25]
    assert list(right.get_lines()[0].get_ydata()) == [0.0, 0.25]


@pytest.mark.thorough
def test_the_committed_figures_are_those_of_the_committed_results(tmp_path):
    drawn = pretraining_figures.save_figures(tmp_path)
    assert {file.name for file in drawn} == {file.name for file in pretraining_figures.FOLDER.glob("pretraining-*.svg")}
    for file in drawn:
        assert_alike(file, pretraining_figures.FOLDER / file.name)


def test_a_figure_drawn_again_is_the_same_file(study, tmp_path):
    first = [file.read_bytes() for file in pretraining_figures.save_figures(tmp_path)]
    assert first == [file.read_bytes() for file in pretraining_figures.save_figures(tmp_path)]
    study["rows"][-1]["validation_loss"] += 0.5
    (tmp_path / "pretraining-x.json").write_text(json.dumps(study))
    assert first != [file.read_bytes() for file in pretraining_figures.save_figures(tmp_path)]


def test_an_unfinished_study_says_so(study, tmp_path, capsys):
    study["rows"] = study["rows"][:3]
    (tmp_path / "pretraining-x.json").write_text(json.dumps(study))
    pretraining.pretraining_losses("x")
    pretraining.pretraining_spread("x")
    assert capsys.readouterr().out.count("Not finished: 5 of 8 runs are missing.") == 2
    pretraining.pretraining_rates("x")
    assert "| midpoint | 8.000 | - |" in capsys.readouterr().out
    assert pretraining_figures.save_figures(tmp_path) == []


def test_an_arm_that_always_diverged_has_no_runs_to_wait_for(study):
    for row in study["rows"]:
        row["error"] = row["arm"] == "midpoint"
    study["rows"] = [row for row in study["rows"] if row["arm"] == "residual" or row["seed"] == 0]
    assert pretraining.is_finished(study)
    study["rows"] = study["rows"][1:]
    assert not pretraining.is_finished(study)


def shown_by_all(study, folder, capsys):
    """What every table and sentence prints of a study; its figure is drawn as well."""
    (folder / "pretraining-x.json").write_text(json.dumps(study))
    for show in (pretraining.pretraining_losses, pretraining.pretraining_spread, pretraining.pretraining_rates):
        show("x")
    pretraining.pretraining_conditions("x")
    assert len(pretraining_figures.save_figures(folder)) == 1
    return capsys.readouterr().out


def diverged(study, *runs):
    rows = [
        {**row, "validation_loss": None, "error": "nan", "curve": []} if (row["arm"], row["seed"]) in runs else row
        for row in study["rows"]
    ]
    return {**study, "rows": rows}


def test_a_seed_that_diverged_is_named(study, tmp_path, capsys):
    shown = shown_by_all(diverged(study, ("midpoint", 1)), tmp_path, capsys)
    assert "| midpoint | 1e-3 | 6.750 | 6.750 to 6.750 | +0.750 | diverged, +0.750 |" in shown
    assert "Too few runs" in shown
    shown = shown_by_all(diverged(study, ("residual", 1)), tmp_path, capsys)
    assert "| residual | 1e-3 | 6.000 | 6.000 to 6.000 | - | diverged, - |" in shown
    assert "| midpoint | 1e-3 | 6.000 | 5.250 to 6.750 | +0.750 | -, +0.750 |" in shown


@pytest.mark.parametrize("arm", ["residual", "midpoint"])
def test_an_arm_whose_compared_runs_all_diverged_is_named(arm, study, tmp_path, capsys):
    shown = shown_by_all(diverged(study, (arm, 1), (arm, 2)), tmp_path, capsys)
    assert f"| {arm} | - | diverged | - | - | - |" in shown


@pytest.mark.parametrize("arm", ["residual", "midpoint"])
def test_an_arm_whose_trials_all_diverged_is_named(arm, study, tmp_path, capsys):
    study = diverged(study, (arm, 0))
    study["rows"] = [row for row in study["rows"] if row["arm"] != arm or row["seed"] == 0]
    shown = shown_by_all(study, tmp_path, capsys)
    assert f"| {arm} | - | diverged | - | - | - |" in shown
    assert f"| {arm} | diverged | diverged |" in shown


def test_all_runs_diverged(study, tmp_path, capsys):
    runs = [(row["arm"], row["seed"]) for row in study["rows"]]
    study = diverged(study, *runs)
    study["rows"] = [row for row in study["rows"] if row["seed"] == 0]
    assert shown_by_all(study, tmp_path, capsys).count("| - | diverged |") == 2


def test_one_seed(study, tmp_path, capsys):
    study["study"]["seeds"] = [1]
    study["rows"] = [row for row in study["rows"] if row["seed"] < 2]
    shown = shown_by_all(study, tmp_path, capsys)
    assert "| midpoint | 1e-3 | 5.250 | 5.250 to 5.250 | +0.250 | +0.250 |" in shown
    assert "nan" not in shown


def test_a_study_may_have_more_arms_than_there_are_markers(study, tmp_path, capsys):
    study["study"]["arms"] = {**ARMS, **{f"arm {number}": {} for number in range(12)}}
    for number in range(12):
        study["rows"] += [{**row, "arm": f"arm {number}"} for row in study["rows"] if row["arm"] == "midpoint"]
    assert "| arm 11 |" in shown_by_all(study, tmp_path, capsys)


FOUND = {
    ("wikitext-10m", -1): {"leapfrog", "leapfrog, h² = 1/4"},
    ("wikitext-10m", 1): {"blend 1/2"},
    ("stdlib-1m", -1): {"leapfrog"},
    ("stdlib-1m", 1): set(),
    ("wikitext-30m", -1): {"leapfrog, h² = 1/4", "blend, random"},
    ("wikitext-30m", 1): set(),
}


@pytest.mark.parametrize(("name", "sign"), FOUND)
def test_what_the_pages_say_of_dynamics_in_prose(name, sign):
    """In docs/science/pretraining.md, the verdict of reproduction.md, and the choice of docs/guides/from-scratch.md."""
    comparison = pretraining.compared_with_ordinary(markdown.result(f"pretraining-{name}"))
    assert {arm for arm in comparison.differences if comparison.sign(arm) == sign} == FOUND[name, sign]
