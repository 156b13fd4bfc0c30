import io

from rich.console import Console

from revformers.training.conversion_progress import ConversionProgress


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
    lines = shown(False, [(100, 0, 5), (110, 1, 5), (120, 2, 5), (145, 3, 5), (150, 4, 5), (160, 5, 5)]).splitlines()
    assert lines == [
        "layer 1/5  about 0:00:40 left",
        "layer 3/5  about 0:00:30 left",
        "layer 5/5  about 0:00:00 left",
    ]


def test_the_next_conversion_begins_anew():
    lines = shown(False, [(0, 0, 2), (10, 1, 2), (20, 2, 2), (25, 0, 2), (26, 1, 2), (28, 2, 2)]).splitlines()
    assert lines[2] == "layer 1/2  about 0:00:01 left"
    assert len(lines) == 4


def test_layers_that_were_done_before_an_interruption_do_not_count_as_fast():
    lines = shown(False, [(0, 0, 30), (10, 21, 30), (20, 22, 30)]).splitlines()
    assert lines == ["layer 21/30  about 0:01:30 left"]


def test_a_terminal_gets_a_bar_and_no_lines():
    text = shown(True, [(0, 0, 30), (10, 1, 30), (50, 2, 30)])
    assert "2/30" in text
    assert "about" not in text
