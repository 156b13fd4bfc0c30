import pytest

from lab.bench.arm_names import ARM_NAMES, ArmName, arm_name, setups_of, smallest_budget_of
from lab.bench.rivals import Rival
from lab.bench.workload import MeasuredWorkload, llama_config
from revformers.activations import Budget, Checkpoint, Rebuild
from revformers.dynamics import BlendedMidpoint, Leapfrog, Midpoint
from revformers.engine.state_format import StateFormat
from revformers.setup import OFFLOAD, Setup

OWN = Leapfrog()


@pytest.mark.parametrize(
    ("text", "arm"),
    [
        ("plain_offload", OFFLOAD),
        ("plain_selective", Rival(None, Checkpoint(), keeps_attention=True)),
        ("plain_every:3", Rival(None, Checkpoint(), every=3)),
        ("checkpoint", Setup(OWN, Checkpoint())),
        ("rebuild", Setup(OWN, Rebuild())),
        ("rebuild:0", Setup(Midpoint(), Rebuild())),
        ("rebuild:2", Setup(BlendedMidpoint("1/4"), Rebuild())),
        ("rebuild:2:int64", Setup(BlendedMidpoint("1/4"), Rebuild(), StateFormat("int64"))),
        ("budget:2MiB", Setup(OWN, Budget(2**21))),
        ("budget_checkpoint:1GB", Setup(OWN, Budget(10**9, "checkpoint"))),
    ],
)
def test_names_and_what_they_mean(text, arm):
    name = ArmName.parse(text)
    assert not name.open
    assert name.setup(OWN) == arm


def test_a_budget_without_a_size_is_open():
    name = ArmName.parse("budget_checkpoint")
    assert name.open
    assert name.setup(OWN, 77) == Setup(OWN, Budget(77, "checkpoint"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("forget", "no arm 'forget'"),
        ("rebuild:9", "bits of side information from 0 to 8"),
        ("rebuild:2:int16", "a format of states, as in rebuild:2:int64"),
        ("rebuild:two", "bits of side information"),
        ("store:2", "cannot be read"),
        ("plain_every", "plain_every takes a number from 2"),
        ("plain_every:1", "plain_every takes a number from 2"),
        ("plain_selective:2", "cannot be read"),
        ("budget:much", "not 'much'"),
    ],
)
def test_what_names_no_arm_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        ArmName.parse(text)


def test_a_budget_that_nobody_settled_is_no_arm():
    with pytest.raises(ValueError, match="needs a budget in bytes"):
        ArmName.parse("budget").setup(OWN)


@pytest.mark.parametrize("name", ARM_NAMES)
def test_an_arm_knows_its_name(name):
    text = "plain_every:2" if name == "plain_every" else name
    assert arm_name(setups_of([text], OWN, 2**20)[text]) == name


@pytest.mark.parametrize(
    ("precision", "state_size"), [("float32", 8), ("bfloat16", 4), ("bfloat16_autocast", 4)], ids=str
)
def test_the_smallest_budget_is_the_pair_of_states_in_the_format_of_the_training(precision, state_size):
    workload = MeasuredWorkload(llama_config(16, 8, 16, 4), sequence_length=4, precision=precision)
    assert smallest_budget_of(ArmName.parse("budget").setup(Midpoint(), 1), workload) == 2 * 4 * 8 * state_size
