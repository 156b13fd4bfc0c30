"""Runs commands of revformers in processes of their own, and reads what a user sees of them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from lab import REPOSITORY
from lab.studies.faults.fault import Outcome, first_sentence

TIME_LIMIT = 300
"""Seconds after which a command counts as one that does not end."""

LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
"""Words after `python` that start two processes."""

_OWN = r"revformers( \w+)?: "
"""The beginning of a command's own message."""

_STOPPED = r"Stopped at step|Interrupted: "
"""The beginning of the line about a command that a signal ended."""

_EXCEPTION = r"[\w.]*(Error|Exception|Interrupt)\b(?<!ChildFailedError)"
"""The beginning of the last line of a traceback."""


@dataclass(frozen=True)
class Ended:
    """A command that has ended.

    Attributes:
        code: its exit code; negative for a signal; none if it did not end in `TIME_LIMIT` seconds and was killed.
        output: what it wrote, to both streams.
        folder: the working directory.

    """

    code: int | None
    output: str
    folder: Path

    @property
    def own_sentence(self) -> str:
        """The last line that revformers itself says about its end; empty if there is none."""
        return self._last_line(_OWN) or self._last_line(_STOPPED)

    @property
    def sentence(self) -> str:
        """The line that says what is wrong: the command's own, that of an exception, or else the last line."""
        return self.own_sentence or self._last_line(_EXCEPTION) or self._last_line("")

    def _last_line(self, pattern: str) -> str:
        lines = [re.sub(r"^\[?rank\d\]?:\s*", "", line.strip()) for line in self.output.splitlines() if line.strip()]
        found = [line for line in lines if re.match(pattern, line)]
        return first_sentence(re.sub(_OWN, "", found[-1]), self.folder) if found else ""

    @property
    def ends_in_a_traceback(self) -> bool:
        """Whether the command printed a traceback; the launcher of several processes prints one of its own."""
        of_launcher = len(re.findall(r"^\S*(ChildFailedError|SignalException)\b", self.output, re.MULTILINE))
        return self.output.count("Traceback (most recent call last)") > of_launcher

    def outcome(self) -> Outcome:
        """Return what a user sees."""
        seen = f"exit code {self.code}"
        if self.code is None:
            return Outcome("wrong", f"no end in {TIME_LIMIT} seconds", self.sentence)
        if self.code == 0:
            return Outcome("wrong", f"{seen}, as if nothing had happened")
        if self.ends_in_a_traceback:
            return Outcome("traceback", seen, self.sentence)
        refused = self.code > 0 and self.own_sentence
        return Outcome("refused" if refused else "wrong", seen, self.sentence)


def command(
    folder: Path,
    *words: str,
    processes: int = 1,
    prefix: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    meanwhile: Callable[["subprocess.Popen[str]"], None] | None = None,
) -> Ended:
    """Run `revformers WORDS` in `folder` to its end.

    Args:
        folder: the working directory.
        words: the command line; with ``("-m", ...)`` or ``("FILE.py", ...)`` that of Python instead.
        processes: 1, or 2 under torchrun.
        prefix: words before Python.
        environment: further variables.
        meanwhile: called with the process once it runs.

    """
    program = (
        list(words) if words[0].startswith("-") or words[0].endswith(".py") else ["-m", "revformers.cli.main", *words]
    )
    line = [*prefix, sys.executable, *(LAUNCHER if processes > 1 else ()), *program]
    path = os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY)])
    settings = {
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
        "REVFORMERS_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "COLUMNS": "200",
    }
    with (folder / "output.txt").open("w+", encoding="utf-8") as output:
        process = subprocess.Popen(
            line,
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **settings, **(environment or {})},
        )
        try:
            if meanwhile is not None:
                meanwhile(process)
            code: int | None = process.wait(timeout=TIME_LIMIT)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            for child in [*psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []:
                child.kill()
            process.kill()
        output.seek(0)
        return Ended(code, output.read(), folder)


def when_exists(
    pattern: str, act: Callable[["subprocess.Popen[str]"], None]
) -> Callable[["subprocess.Popen[str]"], None]:
    """Return a function that waits for a file in the folder of a command, and acts on the command then."""

    def wait(process: "subprocess.Popen[str]") -> None:
        folder = Path(psutil.Process(process.pid).cwd())
        ends = time.monotonic() + TIME_LIMIT
        while process.poll() is None and time.monotonic() < ends:
            if next(folder.glob(pattern), None) is not None:
                act(process)
                return
            time.sleep(0.005)

    return wait


def send(number: signal.Signals) -> Callable[["subprocess.Popen[str]"], None]:
    """Return a function that sends a signal to a command."""
    return lambda process: process.send_signal(number)


def send_to_one_rank(number: signal.Signals) -> Callable[["subprocess.Popen[str]"], None]:
    """Return a function that sends a signal to the last of the processes that a launcher has started."""

    def act(process: "subprocess.Popen[str]") -> None:
        ranks = [child for child in psutil.Process(process.pid).children() if "revformers.cli.main" in child.cmdline()]
        ranks[-1].send_signal(number)

    return act
