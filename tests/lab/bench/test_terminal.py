import io

from rich.console import Console

from lab.bench.terminal import comparison_tables
from tests.lab.bench.example import comparison


def shown(renderable, width=90):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_every_table_of_a_comparison_is_shown():
    text = shown(comparison_tables(comparison()))
    for words in ("Every dynamics, 20 steps", "three ways, 3 steps", "above weights and gradients", "per added layer"):
        assert words in text
    # The brackets of the recurrence are no markup.
    assert "p[l+1] = 2 p[l] - p[l-1] + f(p[l])" in text
    assert "No branches here." in text
    for figure in ("400 MiB", "1.26 (1.25 to 1.27)", "6.125000", "identical", "100%"):
        assert figure in text
    assert max(map(len, text.splitlines())) <= 90


def test_a_narrow_terminal_shows_every_column():
    text = shown(comparison_tables(comparison()), width=80)
    assert all(word in text.split("Bits:")[0] for word in ("bits", "loss", "exact", "time"))
    assert max(map(len, text.splitlines())) <= 80


def test_what_is_wrong_stands_out():
    example = comparison()
    example["arms"]["rows"][2]["same_weights_as_store"] = False
    example["dynamics"][1]["bit_exact"] = False
    text = shown(comparison_tables(example))
    assert "DIFFERENT" in text
    assert "NO" in text


def test_depth_that_was_not_measured_says_why():
    assert "Too few blends." in shown(comparison_tables(comparison() | {"depth": {"unavailable": "Too few blends."}}))
