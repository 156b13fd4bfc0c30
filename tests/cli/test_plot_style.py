import io

import matplotlib
from matplotlib.figure import Figure

from revformers.cli.plot_style import STYLE


def drawn(style):
    with matplotlib.rc_context(style):
        figure, buffer = Figure(), io.BytesIO()
        figure.subplots().plot([0, 1], [0, 1], "o")
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def test_a_plot_drawn_again_is_the_same_file():
    assert drawn(STYLE) == drawn(STYLE)
    without = {name: value for name, value in STYLE.items() if name != "svg.hashsalt"}
    assert drawn(without) != drawn(without)
