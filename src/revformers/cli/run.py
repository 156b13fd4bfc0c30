"""``revformers run TOOL ARGUMENTS``: the command line of another library, in a process that knows reversible models.

The command lines of other libraries do not import revformers, so they cannot load a saved reversible model. This
command imports revformers before the tool.
"""

import os
import runpy
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from revformers.cli.exit_codes import INTERRUPTED, USER_ERROR
from revformers.cli.help_text import listing, paragraphs
from revformers.cli.main import main
from revformers.errors import UserError

TOOLS = {
    "run TOOL ...": "a command that a package installed, such as lm_eval",
    "run -m MODULE ...": "a module, as python -m runs it",
    "run SCRIPT.py ...": "a script",
}
HELP = """\
usage: revformers run TOOL ...

Import revformers, then run another library's command line in this process, so that it loads saved reversible models.

{tools}

  revformers run lm_eval --model hf --model_args pretrained=DIRECTORY --tasks piqa
  revformers run -m trl.scripts.sft --config sft.yaml

With a launcher that starts the processes, put this module after the launcher's options:

  accelerate launch -m revformers.cli.run -m trl.scripts.sft --config sft.yaml
  torchrun --nproc-per-node 2 -m revformers.cli.run script.py

The exit code is the tool's."""

THIS_MODULE = "revformers.cli.run"
LAUNCHERS = {
    "torchrun": "torchrun",
    "deepspeed": "deepspeed",
    "accelerate-launch": "accelerate launch",
    "accelerate launch": "accelerate launch",
    "-m torch.distributed.run": "torchrun",
    "-m torch.distributed.launch": "torchrun",
    "-m accelerate.commands.launch": "accelerate launch",
}
"""Tools that start other processes, which do not import revformers: their first words, and their names."""


def run(arguments: Sequence[str]) -> int:
    """Run the tool that `arguments` name and return its exit code.

    As in a process of its own, an uncaught error of the tool is printed with its traceback, and the code is 1.

    Raises:
        FileNotFoundError: for a missing script.
        UserError: for a tool or a module that is not installed, or that starts other processes.

    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(paragraphs(HELP.format(tools=listing(TOOLS))))
        return 0 if arguments else USER_ERROR
    words = list(arguments)
    _refuse_launchers(words)
    return _exit_code(_tool(words))


def _tool(words: list[str]) -> Callable[[], Any]:
    """Return a function that runs the tool; set this process's arguments and module path as the tool expects them."""
    if words[0] == "-m":
        if len(words) < 2:
            raise UserError("Name a module after -m, as in: revformers run -m trl.scripts.sft --config sft.yaml.")
        module = words[1]
        sys.path.insert(0, os.getcwd())
        if not _exists(module):
            raise UserError(f"There is no module {module!r} to run; install the package that contains it.")
        sys.argv = words[1:]
        return lambda: runpy.run_module(module, run_name="__main__", alter_sys=True)
    if words[0].endswith(".py") or os.sep in words[0]:
        script = Path(words[0]).expanduser()
        if not script.exists():
            raise FileNotFoundError(f"There is no script {words[0]!r} to run.")
        sys.path.insert(0, str(script.resolve().parent))
        sys.argv = [str(script), *words[1:]]
        return lambda: runpy.run_path(str(script), run_name="__main__")
    found = list(entry_points(group="console_scripts", name=words[0]))
    if not found:
        raise UserError(
            f"No installed package has a command {words[0]!r}; name an installed command, such as lm_eval, a module "
            f"(-m trl.scripts.sft) or a script whose name ends in .py."
        )
    sys.argv = words
    return lambda: sys.exit(found[0].load()())


def _exists(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


def _refuse_launchers(words: list[str]) -> None:
    """Raise UserError for tools that start other processes, with a command line that works."""
    two = " ".join(words[:2])
    if words[0] == "trl" and words[1:2] != ["env"] and words[1:] and _exists(f"trl.scripts.{words[1]}"):
        line = shlex.join(["-m", f"trl.scripts.{words[1]}", *words[2:]])
        raise UserError(
            f"{two} starts other processes, which do not import revformers; in one process it is: revformers run "
            f"{line} and in several: accelerate launch -m {THIS_MODULE} {line}"
        )
    launcher = LAUNCHERS.get(words[0]) or LAUNCHERS.get(two)
    if launcher is not None:
        option = "--module" if launcher == "deepspeed" else "-m"
        raise UserError(
            f"{launcher} starts other processes, which do not import revformers; put revformers after its own "
            f"options: {launcher} OPTIONS {option} {THIS_MODULE} SCRIPT.py ARGUMENTS"
        )


def _exit_code(call: Callable[[], Any]) -> int:
    """Run `call` and return the exit code that a process for it alone would have; print an uncaught error."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the tool decides what the signal does
    try:
        call()
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException as error:
        traceback.print_exc()
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
