"""Reads the options of a command, which are the fields of a dataclass, and prints its help."""

from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

import tyro

AnyOptions = TypeVar("AnyOptions")


def read_options(kind: type[AnyOptions], command: str, arguments: Sequence[str]) -> AnyOptions:
    """Return the options in `arguments`; --help, or an option that cannot be read, ends the process.

    Args:
        kind: a dataclass, whose docstring describes the command and each option.
        command: the words before the options, for the help.
        arguments: the words after them.

    """
    return tyro.cli(kind, prog=command, args=list(arguments), use_underscores=True)


def show_help(command: str, kind: Any, options: Any, description: str | None = None) -> NoReturn:
    """Print the help of `command`, whose `options` are an instance of `kind`, and end the process."""
    tyro.cli(
        kind,
        prog=command,
        description=description,
        default=options,
        args=["--help"],
        use_underscores=True,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    raise AssertionError("--help ends the process")
