"""Golden files: what the library gave when they were written, to be compared with what it gives now.

They guard figures, bits and command outputs while modules move. To write them anew, after a change that is meant:

    REVFORMERS_WRITE_GOLDEN=1 OMP_NUM_THREADS=1 python -m pytest tests/golden

in one process (without -n), and read the difference before it is committed: every changed line is a changed promise.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
import transformers

HERE = Path(__file__).parent
WRITES = bool(os.environ.get("REVFORMERS_WRITE_GOLDEN"))


def fingerprint() -> dict[str, Any]:
    """Return what the bits of a computation depend on besides our code."""
    cpu_file = Path("/proc/cpuinfo")
    lines = cpu_file.read_text().splitlines() if cpu_file.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": models[0] if models else "unknown",
        "threads": torch.get_num_threads(),
    }


def golden(name: str, key: str, found: Any) -> tuple[Any, dict[str, Any]]:
    """Return what the golden file has under `key`, and the fingerprint of the machine that it was found on.

    Where golden files are written, `found` is written first.
    """
    path = HERE / name
    if WRITES:
        content = json.loads(path.read_text()) if path.exists() else {}
        if content.get("fingerprint") != fingerprint():
            content = {}  # figures of two machines in one file could be compared with neither
        content = {"fingerprint": fingerprint(), **content, key: found}
        ordered = {"fingerprint": content.pop("fingerprint"), **dict(sorted(content.items()))}
        path.write_text(json.dumps(ordered, indent=1) + "\n")
    content = json.loads(path.read_text())
    assert key in content, f"{name} has no {key!r}; write it with REVFORMERS_WRITE_GOLDEN=1"
    return content[key], content["fingerprint"]
