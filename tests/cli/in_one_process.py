"""Runs the command lines of standard input in turn in this process, and ends the output of each with a line.

The environment of a process decides on its encoding, its width and its home: one process in each is cheaper than one
for every command.
"""

import runpy
import shlex
import sys
import traceback
from pathlib import Path

from lab.__main__ import COMMANDS
from lab.__main__ import main as laboratory
from revformers.cli.main import main

MARK = "=== "
"""The beginning of the line that follows the output of a command; its number and its exit code are the rest."""


def run(words: list[str]) -> int | str:
    """Return the exit code of a command, of a module of the laboratory if its name has a dot."""
    try:
        if "." in words[0]:
            sys.argv = words
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
            return 0
        known = words[0] in COMMANDS or words[0] == "lab"
        return laboratory(words[1:] if words[0] == "lab" else words) if known else main(words)
    except SystemExit as stop:
        return stop.code or 0
    except BaseException:
        traceback.print_exc()
        return "an error"


if __name__ == "__main__":
    for number, line in enumerate(sys.stdin.read().splitlines()):
        code = run(shlex.split(line))
        sys.stdout.flush()
        print(f"{MARK}{number} {code}", flush=True)
        print(f"{MARK}{number} {code}", flush=True, file=sys.stderr)
        with Path("codes.txt").open("a", encoding="utf-8") as codes:
            codes.write(f"{code}\n")
