"""``python -m lab COMMAND``: the measuring commands, which run in a checkout of the repository."""

import sys
from collections.abc import Sequence

from revformers.cli.main import run_command

COMMANDS = {
    "bench": ("lab.commands.bench", "measure memory, step time and the largest batch of every way to train", "lab"),
    "compare": ("lab.commands.compare", "compare every dynamics, and storing, checkpointing and rebuilding", "lab"),
    "report": ("lab.commands.report", "write a run and its comparison as one HTML page", "lab"),
    "evaluate": ("lab.commands.evaluate", "evaluate a model on standard tasks, beside another one", "lab"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the laboratory's command that `argv` names; see `revformers.cli.main.run_command`."""
    return run_command("python -m lab", "Measure reversible models.", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
