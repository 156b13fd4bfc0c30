"""Runs a study as a command."""

import sys
from collections.abc import Callable

from revformers.cli.main import report_mistake


def as_command(main: Callable[[], int | None]) -> None:
    """Call `main`, the command of this process, and exit with the code that it returns, if there is one.

    A mistake that the user can correct is one sentence, as in the commands of revformers.
    """
    try:
        code = main()
    except Exception as error:
        spec = sys.modules["__main__"].__spec__
        code = report_mistake(f"python -m {spec.name}" if spec else sys.argv[0], error)
    if code:
        sys.exit(code)
