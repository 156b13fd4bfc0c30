from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from revformers.cli import plan_plot
from tests.cli.example_plan import MIB, example_plan


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draw a plan whose steps take a MiB for every 100 tokens, and return the curves by their names."""

    def memory(workload, method, batch, tokens, *, fused):
        return SimpleNamespace(device=SimpleNamespace(total=batch * tokens * MIB // 100))

    figures, save = [], Figure.savefig
    monkeypatch.setattr(plan_plot, "step_memory", memory)
    monkeypatch.setattr(Figure, "savefig", lambda figure, *rest: (figures.append(figure), save(figure, *rest)))

    def draw(axis, plan):
        plan_plot.draw(None, plan, axis, tmp_path / "plan.svg")
        assert (tmp_path / "plan.svg").read_text().count('id="rebuild, 2 bits"') == 1
        (axes,) = figures[-1].axes
        return axes, {line.get_label(): line for line in axes.lines}

    return draw


@pytest.mark.parametrize(
    ("axis", "label", "tokens", "most"),
    [("length", "tokens of one sequence", 1, round(1.2 * 4096)), ("batch", "sequences of 512 tokens", 512, 14)],
)
def test_every_way_has_a_curve_from_little_to_beyond_what_fits(drawn, axis, label, tokens, most):
    """Without the host's memory: far more would fit with it than can be seen."""
    axes, curves = drawn(axis, example_plan())
    assert set(curves) == {"store", "offload", "rebuild, 2 bits", "memory"}
    assert axes.get_xlabel() == label
    places, totals = curves["store"].get_data()
    assert (places[0], places[-1]) == (256 if axis == "length" else 1, max(most, 2 if axis == "batch" else 1024))
    assert totals[-1] == pytest.approx((places[-1] * tokens / 100 + 44) / 1024, rel=1e-3)
    assert curves["memory"].get_ydata()[0] == 64 / 1024


@pytest.mark.parametrize(("memory", "bands"), [(64 * MIB, 1), (32 * MIB, 0)])
def test_the_model_is_a_band_where_it_fits(drawn, memory, bands):
    axes, _ = drawn("batch", example_plan(memory))
    assert len(axes.patches) == bands


def test_no_curve_exceeds_the_positions_of_the_model(drawn):
    _, curves = drawn("length", example_plan(longest=1024))
    assert max(curves["store"].get_xdata()) == 1024
