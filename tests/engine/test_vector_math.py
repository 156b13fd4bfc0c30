import subprocess
import sys

import pytest

IMPORT_WATCHED = """
import torch
from torch.utils._python_dispatch import TorchDispatchMode

calls = set()

class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if isinstance(result, torch.Tensor) and result.device.type == "cpu" and result.numel() == 1:
            calls.add((function.overloadpacket.__name__, result.dtype))
        return result

with torch.device("meta"), Watch():
    from revformers import make_reversible

needed = {(name, dtype) for name in NAMES for dtype in (torch.float32, torch.float64)}
print(sorted(f"{name} {dtype}" for name, dtype in needed - calls))
"""


def _missing(names):
    code = IMPORT_WATCHED.replace("NAMES", repr(names))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return result.stdout.split("\n")[-2]


@pytest.mark.thorough
def test_importing_the_library_calls_on_one_thread_what_layers_and_losses_take_from_vector_math():
    # acosh is none of oneMKL's: the check can fail
    missing = _missing(["cos", "sin", "exp", "log", "sqrt", "tanh", "erf", "acosh"])
    assert missing == "['acosh torch.float32', 'acosh torch.float64']"
