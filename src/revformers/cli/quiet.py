"""Keeping the progress bars of other libraries out of our output."""

import sys


def quiet_libraries() -> None:
    """Silence the bars that transformers draws for single files, and outside a terminal those of `datasets` too.

    In a terminal the latter stay: preparing a large corpus takes minutes in which nothing else is shown.
    """
    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
