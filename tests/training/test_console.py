import io

from rich.console import Console

from revformers.training.console import progress_bar, say


def test_a_line_is_printed_as_it_is():
    output = io.StringIO()
    say(Console(file=output, width=10, force_terminal=True), "[bold] 12 words that do not fit")
    assert output.getvalue() == "[bold] 12 words that do not fit\n"


def test_a_bar_is_shown_in_a_terminal_alone():
    for terminal in (True, False):
        output = io.StringIO()
        bar = progress_bar(Console(file=output, force_terminal=terminal, width=80), "step")
        with bar:
            bar.add_task("", total=3, completed=1)
        assert ("1/3" in output.getvalue()) is terminal
        assert terminal or not output.getvalue()
