import io

import pytest
from rich.console import Console

from revformers.training.titled_table import TitledTable

WORDS = ("blended_midpoint", "p[l+1] = 1/2 p[l-1] + 1/2 p[l] + f(p[l])", "[bold]")
FIGURES = ("1,234,567", "5.551234", "1.42 (1.40 to 1.44)")


def example():
    table = TitledTable(
        "Title", "A caption.", left=("name", "recurrence"), right=("bits", "loss", "time"), wraps="recurrence"
    )
    table.add_section("section", "4 documents")
    table.add(*WORDS[:2], *FIGURES)
    table.add("other", WORDS[2], "-", "5.0", "1.00")
    return table


def shown(renderable, width, encoding="utf-8"):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    Console(width=width, file=file).print(renderable)
    file.flush()
    return file.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [34, 40, 60, 61, 79, 80, 100, 200])
def test_no_width_cuts_a_heading_or_a_figure(width):
    text = shown(example(), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for word in (
        *FIGURES,
        *WORDS[1].split(),
        WORDS[0],
        WORDS[2],
        "recurrence",
        "bits",
        "loss",
        "time",
        "Title",
        "caption.",
    ):
        assert word in text


def test_a_row_is_a_line_where_it_fits_and_a_block_elsewhere():
    wide, narrow = shown(example(), 80), shown(example(), 40)
    assert len([line for line in wide.splitlines() if "5.551234" in line and "1.42 (1.40 to 1.44)" in line]) == 1
    assert "section, 4 documents" in narrow
    assert "loss        5.551234" in narrow


def test_a_terminal_without_lines_gets_a_table_in_ascii():
    table = TitledTable(left=("metric",), right=("value", "other"))
    table.add("acc ↑", "0.5000 ± 0.2500", "1")
    table.add("loss", "0.5", "1")
    text = shown(table, 80, "ascii")
    assert text.isascii()
    assert "0.5000 +- 0.2500" in text
    assert len({len(line.rstrip()) for line in text.splitlines()}) == 1


@pytest.mark.parametrize("width", range(26, 60, 3))
def test_a_figure_with_its_error_is_never_wrapped_where_nothing_wraps(width):
    table = TitledTable(left=("metric",), right=("one", "other"))
    table.add("acc", "0.5000 ± 0.2500", "0.7500 ± 0.1250")
    assert all(figure in shown(table, width) for figure in ("0.5000 ± 0.2500", "0.7500 ± 0.1250"))
