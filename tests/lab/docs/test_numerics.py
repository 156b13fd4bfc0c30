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

    def write(*rows, library=()):
        for name in numerics.RUNS:
            given = rows if name == "reversal" else ()
            study = {"rows": given, "library": library if given else (), "batch": 1, "tokens": 8}
            (tmp_path / f"{name}.json").write_text(json.dumps({**study, "seeds": 3, "smollm2_seeds": 1}))

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


def test_a_figure_is_the_median_of_the_seeds(results, capsys):
    results(*(row(error, seed=seed) for seed, error in enumerate((0.1, 0.3, None))))
    numerics.reversal()
    assert "| small | midpoint | 0.3 |  |  |  |  |" in capsys.readouterr().out
    results(*(row(error, seed=seed) for seed, error in enumerate((0.1, None, None))))
    numerics.reversal()
    assert "| small | midpoint | not finite |  |  |  |  |" in capsys.readouterr().out


def test_growth_is_per_step(results, capsys):
    results(row(0.64))
    numerics.growth()
    assert "| small | 8.00 |" in capsys.readouterr().out


def test_the_largest_error_of_the_control(results, capsys):
    results(*(row(0.5, kept=kept, kind=kind) for kind in numerics.FORMATS for kept in (1e-7, 3e-7)))
    numerics.kept_states()
    assert "at most 3e-7 (float32), 3e-7 (states in float64)" in capsys.readouterr().out


def test_set_ups_that_the_library_refuses_are_named(results, capsys):
    ran = {"network": "small", "dynamics": "midpoint", "format": "float32", "parameters": 10, "equal": 9}
    results(row(0.1), library=[ran, {**ran, "dynamics": "leapfrog", "refused": "too large"}])
    numerics.library_gradients()
    shown = capsys.readouterr().out
    assert "In 1 of 2 set-ups the library ran, and 9 of 10 gradients" in shown
    assert "small, leapfrog, float32" in shown
