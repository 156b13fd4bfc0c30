import pytest

from lab.bench.arm_names import ArmName
from lab.bench.workload import Arm
from revformers.dynamics import BlendedMidpoint, Leapfrog, Midpoint

OWN = Leapfrog()


@pytest.mark.parametrize(
    ("text", "arm"),
    [
        ("plain_offload", Arm("plain_offload")),
        ("checkpoint", Arm("checkpoint", OWN.to_dict())),
        ("rebuild", Arm("rebuild", OWN.to_dict())),
        ("rebuild:0", Arm("rebuild", Midpoint().to_dict())),
        ("rebuild:2", Arm("rebuild", BlendedMidpoint("1/4").to_dict())),
        ("budget:2MiB", Arm("budget", OWN.to_dict(), budget=2**21)),
        ("budget_checkpoint:1GB", Arm("budget_checkpoint", OWN.to_dict(), budget=10**9)),
    ],
)
def test_names_and_what_they_mean(text, arm):
    name = ArmName.parse(text)
    assert not name.open
    assert name.arm(OWN) == arm


def test_a_budget_without_a_size_is_open():
    name = ArmName.parse("budget_checkpoint")
    assert name.open
    assert name.arm(OWN, 77) == Arm("budget_checkpoint", OWN.to_dict(), budget=77)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("forget", "no arm 'forget'"),
        ("rebuild:9", "bits of side information from 0 to 8"),
        ("rebuild:two", "bits of side information"),
        ("store:2", "cannot be read"),
        ("budget:much", "not 'much'"),
    ],
)
def test_what_names_no_arm_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        ArmName.parse(text)
