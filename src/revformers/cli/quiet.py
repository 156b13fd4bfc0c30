"""Keeping what other libraries print out of our output."""

import logging
import sys
import warnings
from functools import partial

NOISE = {
    "bitsandbytes.backends.cpu.ops": "Failed to load",
    "torch.utils._pytree": "is an Enum subclass",
    "torchao": "Failed to load",
    "transformers.modeling_utils": "`loss_type=None` was set in the config",
}
"""For each logger what it says of kernels for other machines or of other libraries, which no user can put right."""


def _says_something_else(text: str, record: logging.LogRecord) -> bool:
    return text not in record.getMessage()


_FILTERS = {name: partial(_says_something_else, text) for name, text in NOISE.items()}


def quiet_imports() -> None:
    """Silence what libraries say as they are imported and used; call it before they are."""
    for name, own in _FILTERS.items():
        logging.getLogger(name).addFilter(own)
    # PEFT asks a model whether it checkpoints by a name that transformers is giving up.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def quiet_libraries() -> None:
    """Silence the bars that transformers draws for single files, and outside a terminal those of `datasets` too.

    In a terminal the latter stay: preparing a large corpus takes minutes in which nothing else is shown. A command
    calls this once it has imported what it needs; one that reads no data set needs no `datasets`.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if "datasets" in sys.modules and not sys.stderr.isatty():
        sys.modules["datasets"].disable_progress_bars()
