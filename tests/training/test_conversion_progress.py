import io

from rich.console import Console

from revformers.training.conversion_progress import ConversionProgress


def shown(terminal, calls, layers):
    """What is shown for calls of (seconds, done, total)."""
    output, seconds = io.StringIO(), [0.0]
    console = Console(file=output, force_terminal=terminal, width=120)
    with ConversionProgress(console, layers, lambda: seconds[0]) as progress:
        for now, done, total in calls:
            seconds[0] = now
            progress(done, total)
    return output.getvalue()


FIRST, SECOND = "pass 1 of 2, fits to the original network", "pass 2 of 2, fits along the converted network"
ONLY = "pass 1 of 1, fits along the converted network"


def test_a_file_gets_an_estimate_after_the_first_layer_and_a_line_a_minute():
    calls = [(100, 0, 6), (110, 1, 6), (120, 2, 6), (145, 3, 6), (171, 4, 6), (200, 5, 6), (220, 6, 6)]
    assert shown(False, calls, 3).splitlines() == [
        f"{FIRST}: layer 1/3  about 0:00:50 left",
        f"{SECOND}: layer 1/3  about 0:00:36 left",
        f"{SECOND}: layer 3/3  about 0:00:00 left",
    ]


def test_the_next_conversion_begins_anew_and_has_one_pass():
    calls = [(0, 0, 2), (10, 1, 2), (20, 2, 2), (25, 0, 1), (26, 1, 1)]
    lines = shown(False, calls, 1).splitlines()
    assert lines[-1] == f"{ONLY}: layer 1/1  about 0:00:00 left"
    assert len(lines) == 3


def test_layers_that_were_done_before_an_interruption_do_not_count_as_fast():
    lines = shown(False, [(0, 0, 30), (10, 21, 30), (20, 22, 30)], 15).splitlines()
    assert lines == [f"{SECOND}: layer 6/15  about 0:01:30 left"]


def test_a_terminal_gets_a_bar_and_no_lines():
    text = shown(True, [(0, 0, 30), (10, 1, 30), (50, 2, 30)], 15)
    assert "2/30" in text
    assert FIRST in text
    assert "about" not in text
