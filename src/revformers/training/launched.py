"""What a launcher of several processes has told this one by environment variables."""

import os

from revformers.errors import UserError

NUMBERS = ("WORLD_SIZE", "RANK", "LOCAL_RANK")


def launched_processes() -> int:
    """Return the number of processes that were launched together; 1 without a launcher.

    Raises:
        UserError: if the variables hold no numbers, or are not all there, as some job schedulers set WORLD_SIZE alone.

    """
    for name in NUMBERS:
        value = os.environ.get(name, "0")
        if not value.removeprefix("-").isdecimal():  # -1 means no rank
            raise UserError(f"The environment variable {name} is {value!r}, which is not a number; unset it.")
    count = int(os.environ.get("WORLD_SIZE", 1))
    missing = [name for name in ("RANK", "MASTER_ADDR") if not os.environ.get(name)]
    if count > 1 and missing:
        raise UserError(
            f"The environment variable WORLD_SIZE is {count}, but {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set, so no launcher has started {count} processes; start the "
            f"command with torchrun, or unset WORLD_SIZE to train in one process."
        )
    return max(count, 1)


def is_main() -> bool:
    """Return whether this process is the main one of those that were launched together, or alone."""
    return os.environ.get("RANK", "0") == "0"
