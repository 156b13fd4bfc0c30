import dataclasses
import re
import warnings

from revformers.cli.analyze_plot import draw
from tests.cli.test_analyze_table import example


def test_every_dynamics_has_its_curve(tmp_path):
    files = {file.stem: file.read_text() for file in draw(example(), tmp_path / "new")}
    assert sorted(files) == ["eigenvalues", "energy", "growth-forwards", "growth-inverse", "reversal"]
    assert set(re.findall(r'<g id="(midpoint|residual)"', files["growth-forwards"])) == {"midpoint", "residual"}
    assert set(re.findall(r'<g id="(midpoint|residual)"', files["growth-inverse"])) == {"midpoint"}
    assert "layer 3" in files["eigenvalues"]


def test_drawn_again_it_is_the_same(tmp_path):
    first = [file.read_text() for file in draw(example(), tmp_path)]
    assert [file.read_text() for file in draw(example(), tmp_path)] == first


def test_zeros_need_no_logarithmic_axis(tmp_path):
    analysis = example()
    zeros = tuple(dataclasses.replace(one, mean_squares=(0.0, 0.0)) for one in analysis.dynamics)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(dataclasses.replace(analysis, dynamics=zeros), tmp_path)
