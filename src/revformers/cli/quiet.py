"""Filters that keep messages of other libraries out of the output of commands."""

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
"""For each logger a part of the message to silence: about kernels for other machines or other libraries' code."""


def _says_something_else(text: str, record: logging.LogRecord) -> bool:
    return text not in record.getMessage()


_FILTERS = {name: partial(_says_something_else, text) for name, text in NOISE.items()}


def quiet_imports() -> None:
    """Silence messages of libraries during their import and use; call it before they are imported."""
    for name, own in _FILTERS.items():
        logging.getLogger(name).addFilter(own)
    # PEFT asks a model whether it uses checkpointing by a name that transformers has deprecated.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def quiet_libraries() -> None:
    """Silence transformers' progress bars for single files and, outside a terminal, those of `datasets`.

    In a terminal the bars of `datasets` stay, because preparing a large corpus takes minutes without other output. A
    command calls this after its imports; a command that reads no data set need not import `datasets`.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if "datasets" in sys.modules and not sys.stderr.isatty():
        sys.modules["datasets"].disable_progress_bars()
