"""Keeping what other libraries print out of our output."""

import logging
import sys

NOISY = ("bitsandbytes.backends.cpu.ops", "torch.utils._pytree", "torchao")
"""Loggers that warn, as their libraries are imported, of kernels for other machines and of each other."""


def quiet_imports() -> None:
    """Silence the warnings of libraries that are imported after this call; transformers and PEFT import some."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)


def quiet_libraries() -> None:
    """Silence the bars that transformers draws for single files, and outside a terminal those of `datasets` too.

    In a terminal the latter stay: preparing a large corpus takes minutes in which nothing else is shown. A command
    calls this once it has imported what it needs; one that reads no data set needs no `datasets`.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if "datasets" in sys.modules and not sys.stderr.isatty():
        sys.modules["datasets"].disable_progress_bars()
