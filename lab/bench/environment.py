"""Describes the machine, software and command of a measurement, and writes its result."""

import argparse
import importlib.metadata
import os
import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch

from revformers.engine.ops import SWITCH
from revformers.errors import UserError
from revformers.files import check_place, write_json

PACKAGES = ("revformers", "torch", "transformers", "triton")
COMMIT = "REVFORMERS_COMMIT"
"""Environment variable that names the commit of a copy without git."""


def describe_environment() -> dict[str, Any]:
    """Return the machine and the software of a measurement, in types that JSON supports.

    Memory is in bytes. `driver` is that of the GPU, and `cuda` the version that PyTorch was built for. `kernels` is
    "plain" if the fused kernels were switched off, else None. `git_commit` is that of the running code, with
    "-modified" if tracked Python files differ from it; where there is no git or no checkout, it is what the environment
    variable REVFORMERS_COMMIT says, or None. The result does not identify the machine, its user or its directories.
    """
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "kernels": os.environ.get(SWITCH),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "driver": _driver_version() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "git_commit": _git_commit() or os.environ.get(COMMIT),
    }


def command_line(arguments: Sequence[str], program: str = "python -m lab") -> str:
    """Return `program` with `arguments` as a user would type it; absolute paths are shortened by `without_machine`."""
    return f"{program} {shlex.join(map(without_machine, arguments))}"


def write_result(
    path: Path, result: Mapping[str, Any], arguments: Sequence[str], program: str = "python -m lab"
) -> None:
    """Write `result` with its environment to `path` as JSON, atomically.

    `arguments` are the words that followed `program` on the command line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"command": command_line(arguments, program), "environment": describe_environment(), **result})


def output_file(text: str) -> Path:
    """Return the path of a result, for `type` of an argument; refuse it, before any work, if it cannot be written."""
    path = Path(text)
    try:
        check_place(path)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path


def without_machine(word: str) -> str:
    """Make an absolute path relative to the working directory, or keep only its name if it lies elsewhere."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    path = Path(value)
    if path.is_absolute():
        value = str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name
    return option + equals + value


def _processor_name() -> str:
    """Return the processor's name; Linux keeps it in a file, other systems in `platform`."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def _driver_version() -> str | None:
    """Return the version of NVIDIA's driver as its own tool says it, or None without that tool."""
    try:
        run = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.split("\n", 1)[0].strip() or None


def _version(package: str) -> str | None:
    """Return the installed version of `package`, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit(source: Path = Path(__file__)) -> str | None:
    """Return the commit of the checkout that tracks `source`, or None without git or a checkout."""
    try:
        _git(source.parent, "ls-files", "--error-unmatch", source.name)
        # Only code: a tracked result that is written while a study runs does not change what the study measures.
        modified = _git(source.parent, "status", "--porcelain", "--untracked-files=no", "--", ":(top)*.py")
        return _git(source.parent, "rev-parse", "--short=12", "HEAD") + ("-modified" if modified else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    run = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return run.stdout.strip()
