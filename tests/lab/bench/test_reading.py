from lab.bench.reading import read_arms, read_depth, read_dynamics
from tests.lab.bench.example import comparison


def arms_text(change=lambda rows: None):
    example = comparison()
    change({row["arm"]: row for row in example["arms"]["rows"]})
    return " ".join(read_arms(example["arms"], example["network"]))


def test_memory_time_and_loss_are_said_in_words():
    text = arms_text()
    assert "rebuilding peaked at 100 MiB" in text
    assert "4.0 times less than storing (400 MiB)" in text
    assert "17% less than checkpointing (120 MiB)" in text
    assert "630 ms, 1.26 times as long as storing and 1.05 times as long as checkpointing" in text
    assert "32.0 MiB here" in text  # 8 x 256 x 4096 logits of 4 bytes
    assert "the same loss in each of the 3 steps and ended with the same weights" in text


def test_the_unflattering_is_said_too():
    assert "25% more than checkpointing" in arms_text(lambda rows: rows["rebuild"].update(peak=150 * 2**20))
    assert "no less than checkpointing" in arms_text(lambda rows: rows["rebuild"].update(peak=120 * 2**20))
    different = arms_text(lambda rows: rows["rebuild"].update(same_weights_as_store=False))
    assert "rebuild computed something other than storing" in different
    assert "the same loss" not in different


def test_depth_is_read_from_the_points():
    depth = comparison()["depth"]
    text = " ".join(read_depth(depth))
    assert "From 4 to 16 layers" in text
    assert "2,000%, 100% and 0%" in text
    assert "At 4 layers checkpointing needs less" in text
    assert "side information" not in text
    assert "two tensors" not in text
    assert "two tensors per layer" in " ".join(read_depth({**depth, "steps_per_layer": 2}))


def test_side_information_explains_growth():
    depth = comparison()["depth"]
    for row in depth["growth"]:
        if row["arm"] == "rebuild":
            row["side_information_share"] = 0.03
    assert "side information" in " ".join(read_depth(depth))


def test_a_dynamics_that_is_not_exact_is_named():
    rows = comparison()["dynamics"]
    assert "All 2 reversible dynamics" in read_dynamics(rows, 20)[0]
    rows[2]["bit_exact"] = False
    assert "gradients of leapfrog differ" in read_dynamics(rows, 20)[0]
    rows[2]["decided"] = False
    assert "gradients of leapfrog could not be compared" in read_dynamics(rows, 20)[0]
    assert "20 steps" in read_dynamics(rows, 20)[1]


def test_the_head_is_said_to_be_chunked_where_it_is():
    example = comparison()
    chunked = " ".join(read_arms(example["arms"], example["network"] | {"head": "auto"}))
    assert "logits of a few tokens at a time" in chunked
    assert "32.0 MiB here" in chunked
    assert "Part of every peak" in arms_text()
