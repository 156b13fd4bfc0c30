from revformers.analysis import Analysis, DynamicsAnalysis, Extremes, LayerSpectrum
from revformers.cli.analyze_table import dynamics_table, number, spectrum_table
from revformers.training.console import command_console


def example():
    """An analysis with one layer, whose smallest eigenvalue was not found."""
    spectrum = LayerSpectrum(3, 1.0, 0.5, Extremes(1.5 + 0j, 1.25 + 0j, None, 0.75j, 0.0, 10), None)
    with_inverse = DynamicsAnalysis(
        "midpoint", "m", (1.5,), (2.5,), (1.0, 4.0), (1.0, 8.0), {"float32": (0.5, 3e-5, 0, 0)}, (1.0,), (1.0,), None
    )
    without = DynamicsAnalysis("residual", "r", (1.25,), (None,), (1.0, 2.0), None, {}, (1.0,), (1.0,), None)
    return Analysis("residual", 4, 32, 8, "float32", (spectrum,), (without, with_inverse))


def lines(table, capsys):
    command_console().print(table)
    return capsys.readouterr().out


def test_eigenvalues_and_predictions(capsys):
    shown = lines(spectrum_table(example()), capsys)
    assert "- to 1.25" in shown
    assert "0.75" in shown
    assert "1.5 / 2.5" in shown
    assert "1.25 / -" in shown


def test_growth_and_errors(capsys):
    shown = lines(dynamics_table(example()), capsys)
    (row,) = (line for line in shown.splitlines() if line.split()[:1] == ["midpoint"])
    assert row.split()[1:] == ["4", "8", "3e-05", "-", "-"]
    (row,) = (line for line in shown.splitlines() if line.split()[:1] == ["residual"])
    assert row.split()[1:] == ["2", "-", "-", "-", "-"]


def test_numbers_have_three_digits():
    assert [number(value) for value in (None, 1.23456, 123456.0)] == ["-", "1.23", "1.23e+05"]
