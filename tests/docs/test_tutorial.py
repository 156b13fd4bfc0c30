"""The tutorial runs from its first block to its last, with fewer steps, and shows what it says."""

import pytest
import torch

import revformers as rf
from tests.docs.pages import blocks

PAGE = "docs/tutorial.md"
FEWER = {"steps=200": "steps=8", "steps=100": "steps=8", "text[:64]": "text[:8]", "depth in (8, 16)": "depth in (4, 6)"}


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_tutorial_ends_with_a_fine_tuned_model(workspace, capsys):
    code = "\n".join(blocks(PAGE, "python"))
    for here, there in FEWER.items():
        assert here in code
        code = code.replace(here, there)
    names = {}
    exec(compile(code, PAGE, "exec"), names)
    shown = capsys.readouterr().out.splitlines()
    # The float states are close and not equal; the integer states are equal, and so are their gradients.
    assert [shown[0], shown[1], shown[3], shown[4]] == ["True", "False", "True", "True"]
    assert sum("to the bit" in line for line in shown) == 2
    assert names["after"] < names["before"]
    assert names["converted"] == pytest.approx(names["ordinary"], rel=0.05)
    assert rf.describe(names["model"]).recurrence.startswith("p[l+1] = a p[l-1]")


@pytest.mark.thorough
def test_only_rebuilding_is_free_of_depth(workspace):
    names = {}
    for block in blocks(PAGE, "python"):
        if "def llama" in block or "def bytes_of_a_step" in block:
            exec("import torch\n" + block.partition("\nfor activations")[0], names)
    peaks = {
        policy: [names["bytes_of_a_step"](depth, policy) for depth in (6, 9)]
        for policy in (rf.Store(), rf.Checkpoint(), rf.Rebuild())
    }
    assert peaks[rf.Rebuild()][0] == pytest.approx(peaks[rf.Rebuild()][1], rel=0.01)
    inputs = 3 * 4 * 64 * 64 * torch.float32.itemsize
    assert peaks[rf.Checkpoint()][1] - peaks[rf.Checkpoint()][0] == pytest.approx(inputs, rel=0.1)
    assert peaks[rf.Store()][1] - peaks[rf.Store()][0] > 5 * inputs
