import json

import pytest

from lab.docs import markdown, numerics


def row(error, *, kept=None, seed=0, dynamics="midpoint", kind="float32"):
    """A row of a result whose errors are all the same."""
    found = {part: {"error": error, "cosine": 1.0} for part in ("whole", "first_layer")}
    controls = {} if kept is None else {"kept": {"whole": {"error": kept, "cosine": 1.0}}}
    states = [error, None if error is None else error / 8, None if error is None else error / 64, 0.0]
    names = {"network": "small", "dynamics": dynamics, "format": kind, "seed": seed}
    return {**names, "inverse": found, "state_errors": states, **controls}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(markdown, "RESULTS", tmp_path)
    monkeypatch.setattr(numerics, "RUNS", ("reversal",))

    def write(*rows, library=()):
        study = {"rows": rows, "library": library, "batch": 1, "tokens": 8}
        (tmp_path / "reversal.json").write_text(json.dumps(study))

    return write


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (None, "not finite"),
        (0.0, "0"),
        (2.3e-6, "2e-6"),
        (0.0123, "0.012"),
        (0.97, "0.97"),
        (34.3, "34"),
        (1.6e30, "2e30"),
    ],
)
def test_sizes_of_errors(error, text):
    assert numerics._size(error) == text


def test_a_figure_has_the_lowest_and_the_highest_of_the_seeds(results, capsys):
    results(*(row(error, seed=seed) for seed, error in enumerate((0.3, None, 0.1))))
    numerics.reversal()
    assert "| small | midpoint | 0.1 to not finite |  |  |  |  |" in capsys.readouterr().out
    results(*(row(error, seed=seed) for seed, error in enumerate((0.3, 0.3))))
    numerics.reversal()
    assert "| small | midpoint | 0.3 |  |  |  |  |" in capsys.readouterr().out


def test_the_last_two_steps_are_those_of_trained_networks(results, capsys, monkeypatch):
    monkeypatch.setattr(numerics, "TRAINED", ("small",))
    results(row(0.64), {**row(0.5), "network": "random"}, row(0.5, dynamics="blended 1/2"))
    errors = row(0.64)["state_errors"]
    numerics.last_steps()
    shown = capsys.readouterr().out
    assert f"enlarge the error {errors[0] / errors[2]:.0f} to {errors[0] / errors[2]:.0f} times" in shown


def test_growth_is_per_step(results, capsys):
    results(row(0.64))
    numerics.growth()
    assert "| small | 8.00 |" in capsys.readouterr().out


def test_the_largest_error_of_the_control(results, capsys):
    results(*(row(0.5, kept=kept, kind=kind) for kind in numerics.FORMATS for kept in (1e-7, 3e-7)))
    numerics.kept_states()
    assert "at most 3e-7 (float32), 3e-7 (states in float64)" in capsys.readouterr().out


def test_set_ups_that_the_library_refuses_are_named_with_the_recorded_cause(results, capsys):
    ran = {"network": "small", "dynamics": "midpoint", "format": "float32", "parameters": 10, "equal": 9}
    refused = [
        {**ran, "dynamics": "leapfrog", "refused": "A state is too large."},
        {**ran, "dynamics": "hamiltonian", "refused": "A state is too large."},
        {**ran, "format": "autocast", "refused": "The layers have no branches"},
    ]
    results(row(0.1), library=[ran, *refused])
    numerics.library_gradients()
    first, *sentences = capsys.readouterr().out.splitlines()
    assert first == ("In 1 of 4 set-ups the library ran, and 9 of 10 gradients of parameters were equal to the bit.")
    assert sentences == [
        "It refused small, leapfrog, float32; small, hamiltonian, float32: A state is too large.",
        "It refused small, midpoint, autocast: The layers have no branches.",
    ]


def test_nothing_is_said_of_refusals_where_there_are_none(results, capsys):
    ran = {"network": "small", "dynamics": "midpoint", "format": "float32", "parameters": 10, "equal": 10}
    results(row(0.1), library=[ran])
    numerics.library_gradients()
    assert "refused" not in capsys.readouterr().out


def test_the_conditions_name_the_networks(results, capsys):
    results(row(0.1), row(0.1, seed=2))
    numerics.reversal_conditions()
    assert capsys.readouterr().out.startswith("1 x 8 tokens, 3 seeds: small.\n")


def test_ranges_are_those_of_trained_networks_without_blends(results, capsys, monkeypatch):
    monkeypatch.setattr(numerics, "TRAINED", ("small",))
    monkeypatch.setattr(numerics, "FORMATS", {"float32": "in float32"})
    rows = [row(0.1), row(0.3, dynamics="leapfrog"), row(0.9, dynamics="blended 1/2")]
    results(*rows, {**row(0.8), "network": "random"})
    numerics.trained_ranges()
    assert (
        capsys.readouterr().out == "For |a| = 1 on small, over all seeds, these errors are 0.1 to 0.3 (in float32).\n"
    )


def test_training_shows_what_the_inverse_adds_to_the_loss_of_every_seed(results, tmp_path, capsys):
    def trained(seed, by_inverse, error):
        gradient = {when: {"error": error, "cosine": 1 - error} for when in ("fresh", "autograd", "inverse")}
        losses = {"autograd": 2.0 + seed, "inverse": by_inverse}
        return {"dynamics": "leapfrog", "states": "bfloat16", "seed": seed, "held_out": losses, "gradient": gradient}

    study = {"rows": [trained(0, 2.5, 0.25), trained(1, 2.9, 0.5)]}
    (tmp_path / "reversal-training.json").write_text(json.dumps(study))
    numerics.training()
    assert (
        "| leapfrog | bfloat16 | 2.500 | +0.500, -0.100 | 0.25 to 0.5 | 0.25 to 0.5 | 0.500 |"
        in capsys.readouterr().out
    )


def test_the_first_layer_is_compared_where_the_gradient_is_wrong(results, capsys):
    larger, smaller, right = row(0.5), row(0.5, seed=1), row(0.0, seed=2)
    larger["inverse"]["first_layer"]["error"] = 0.6
    smaller["inverse"]["first_layer"]["error"] = 0.4
    results(larger, smaller, right)
    numerics.first_layer_over_whole()
    assert "in 1 of the 2 runs" in capsys.readouterr().out


def test_the_lowest_error_of_bfloat16_states_stands_beside_its_own_control(results, capsys):
    kind = "bfloat16 weights and states"
    results(
        row(0.3, kept=0.02, kind=kind),
        row(0.2, seed=1, kind=kind),
        row(0.5, kept=0.04, kind=kind, dynamics="leapfrog"),
        row(0.1),
    )
    numerics.bfloat16_states()
    assert "error is 0.2, of midpoint on small, where the same pass with kept states is off by 0.02." in (
        capsys.readouterr().out
    )


def test_the_digits_of_blends(results, capsys, monkeypatch):
    monkeypatch.setattr(numerics, "TRAINED", ("small",))
    results(row(0.64), row(0.64, dynamics="blended 1/2"))
    numerics.digits_of_blends()
    assert "On small these are 3.0 (blended 1/2) binary digits a step." in capsys.readouterr().out


def test_the_first_layer_has_the_lowest_cosine_and_the_range_of_the_rebuilt_embedding(results, capsys):
    aligned, turned = row(0.5), row(0.25, seed=1)
    turned["inverse"]["first_layer"]["cosine"] = 0.75
    results(aligned, turned)
    numerics.first_layers()
    assert "| small | midpoint | 0.750 | 0.25 to 0.5 |  |  |" in capsys.readouterr().out


def errors_of(kind, dynamics=""):
    """The errors of the committed results in a format, of dynamics whose names have a word, on all networks but one."""
    rows = [row for row in numerics._rows() if row["format"] == kind and row["network"] != "stories260K"]
    assert rows
    return [row["inverse"]["whole"]["error"] for row in rows if dynamics in row["dynamics"]]


def test_what_the_page_says_in_prose():
    """Under "How to read it" in docs/science/numerics.md."""
    for kind in numerics.FORMATS:
        assert min(errors_of(kind, "blended 1/16")) > 0.5, "far off on 12 layers or more"
    for dynamics in ("midpoint", "leapfrog", "hamiltonian"):
        assert max(errors_of("float32, states in float64", dynamics)) == 0, "the right gradient"
        assert min(errors_of("autocast", dynamics)) > 10 * min(errors_of("float32", dynamics)), "much larger"
    wrong = [row["inverse"]["whole"]["error"] for row in numerics._rows() if row["format"].endswith("and states")]
    assert min(wrong) > 0.03, "several percent at least"
