import dataclasses

import pytest

import revformers as rf
from revformers.training.fitted import Fitted, Settings

MIB = 2**20
SETTINGS = Settings(rf.Rebuild(), rf.Midpoint(), None, False, memory=10 * MIB, host=0, seconds=2.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "rebuild"),
        ({"activations": rf.Budget(2 * MIB)}, "budget of 2 MiB"),
        ({"dynamics": rf.Midpoint(granularity="branch")}, "rebuild, steps by branch"),
        (
            {"mlp_tile": 512, "optimizer_in_backward": True},
            "rebuild, MLPs in tiles of 512 tokens, the optimizer inside the backward pass",
        ),
    ],
    ids=["policy", "budget", "branch", "all else"],
)
def test_settings_name_what_is_not_the_default(changes, words):
    assert str(dataclasses.replace(SETTINGS, **changes)) == words


def test_settings_fit_if_the_device_and_the_host_have_the_memory():
    settings = dataclasses.replace(SETTINGS, host=MIB)
    assert settings.fits(10 * MIB, MIB)
    assert not settings.fits(10 * MIB - 1, MIB)
    assert not settings.fits(10 * MIB, MIB - 1)


def test_the_choice_is_told_with_what_else_there_was():
    offload = dataclasses.replace(SETTINGS, activations=rf.Offload(), memory=8 * MIB, host=3 * MIB, seconds=3.0)
    fitted = Fitted(SETTINGS, (offload,), 12 * MIB, 0, ("A remark.",))
    assert str(fitted).splitlines() == [
        "rebuild: a predicted peak of 10 MiB of 12 MiB",
        "  offload: 1.50 times as long, 8 MiB and 3 MiB of the host, does not fit",
        "A remark.",
    ]
    in_backward = dataclasses.replace(fitted, chosen=dataclasses.replace(SETTINGS, optimizer_in_backward=True))
    assert "step_in_backward(optimizer)" in str(in_backward)
    assert "does not fit" not in str(dataclasses.replace(fitted, host_memory=3 * MIB))
