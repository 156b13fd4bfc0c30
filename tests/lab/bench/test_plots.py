import re
import xml.etree.ElementTree as ElementTree

import pytest

from lab.bench.plots import COLOUR_VARIABLES, Bar, Series, bar_plot, line_plot

LINES = [Series("high", [1, 2, 4], [10.0, 20.0, 40.0], 0), Series("low", [1, 2, 4], [5.0, 5.0, 5.0], 1)]
BARS = [Bar("first", 0.9, 1.0, 1.1, "1.0 s", 0), Bar("second", 1.9, 2.0, 2.1, "2.0 s", 2)]


def line():
    return line_plot(LINES, "layers", "peak, MiB", 'A "plot" of <this> & that.', from_zero=True, x_ticks=[1, 2, 4])


def texts(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


@pytest.mark.parametrize("svg", [line(), bar_plot(BARS, "seconds", "Bars.")])
def test_a_plot_is_one_element_that_loads_nothing(svg):
    # xlink is what the HTML parser adds on its own.
    root = ElementTree.fromstring(svg.replace("<svg", '<svg xmlns:xlink="x"', 1))
    assert root.tag == "svg"
    assert root.attrib["role"] == "img"
    assert "://" not in svg
    assert "<script" not in svg
    assert set(re.findall(r'xlink:href="(.)', svg)) <= {"#"}


def test_the_page_sets_the_colours():
    svg = line()
    assert "var(--series-1)" in svg
    assert "var(--series-2)" in svg
    assert "var(--series-3)" not in svg
    assert not any(stand_in in svg for stand_in in COLOUR_VARIABLES)


def test_series_are_named_and_the_axis_starts_at_zero():
    written = texts(line())
    assert {"high", "low", "layers", "peak, MiB", "0", "1", "2", "4"} <= set(written)


def test_names_that_would_overlap_are_moved_apart():
    close = [
        Series("a", [0, 1], [0.0, 100.0], 0),
        Series("b", [0, 1], [1.0, 1.0], 1),
        Series("c", [0, 1], [1.5, 1.5], 2),
    ]
    svg = line_plot(close, "x", "y", "Close.")
    heights = {name: float(re.search(rf'y="([\d.]+)"[^>]*>{name}</text>', svg).group(1)) for name in "abc"}
    assert heights["b"] - heights["c"] > 10


def test_bars_carry_their_notes():
    assert {"first", "second", "1.0 s", "2.0 s", "seconds"} <= set(texts(bar_plot(BARS, "seconds", "Bars.")))


def test_the_description_is_escaped():
    assert 'aria-label="A &quot;plot&quot; of &lt;this> &amp; that."' in line()
