import io

from rich.console import Console

from revformers.cli.conversion_progress import ConversionProgress


def shown(terminal, calls):
    """What is shown for calls of (seconds, done, total)."""
    output, seconds = io.StringIO(), [0.0]
    console = Console(file=output, force_terminal=terminal, width=80)
    with ConversionProgress(console, lambda: seconds[0]) as progress:
        for now, done, total in calls:
            seconds[0] = now
            progress(done, total)
    return output.getvalue()


def test_a_file_gets_an_estimate_after_the_first_layer_and_a_line_now_and_then():
    lines = shown(False, [(10, 1, 30), (20, 2, 30), (45, 4, 30), (300, 30, 30)]).splitlines()
    assert lines == [
        "layer 1/30  about 0:04:50 left",
        "layer 4/30  about 0:04:52 left",
        "layer 30/30  about 0:00:00 left",
    ]


def test_the_next_conversion_begins_anew():
    lines = shown(False, [(10, 1, 2), (20, 2, 2), (25, 1, 2), (26, 2, 2)]).splitlines()
    assert lines[2] == "layer 1/2  about 0:00:00 left"
    assert len(lines) == 4


def test_a_terminal_gets_a_bar_and_no_lines():
    text = shown(True, [(10, 1, 30), (50, 2, 30)])
    assert "2/30" in text
    assert "about" not in text
