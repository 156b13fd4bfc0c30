import pytest
import torch

from lab.bench.arm_names import setups_of
from lab.bench.short_training import mean_loss, train_in_turns
from lab.bench.workload import MeasuredWorkload, llama_config
from revformers import Midpoint
from revformers.setup import STORE

WORKLOAD = MeasuredWorkload(llama_config(2, 32, 16, 16), batch_size=2, sequence_length=16)
DROPOUT = MeasuredWorkload(
    {"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 16, "vocab_size": 16},
    batch_size=2,
    sequence_length=16,
)


def models_of(workload, names):
    return {name: arm.apply(workload.build_model()) for name, arm in setups_of(names, Midpoint()).items()}


@pytest.mark.parametrize("workload", [WORKLOAD, DROPOUT])
def test_how_activations_are_held_does_not_change_what_is_learned(workload):
    models = models_of(workload, ["store", "checkpoint", "rebuild"])
    training = train_in_turns(workload, models, [workload.build_batch(number) for number in range(4)], 1e-2)
    assert training.losses["store"] == training.losses["checkpoint"] == training.losses["rebuild"]
    for name in ("checkpoint", "rebuild"):
        pairs = zip(models[name].parameters(), models["store"].parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    assert [len(seconds) for seconds in training.times.seconds.values()] == [3, 3, 3]


def test_it_learns():
    batch = WORKLOAD.build_batch()
    models = models_of(WORKLOAD, ["plain_store"])
    before = mean_loss(WORKLOAD, models["plain_store"], [batch])
    steps = []
    training = train_in_turns(WORKLOAD, models, [batch] * 12, 1e-2, on_step=steps.append)
    assert training.losses["plain_store"][0] == pytest.approx(before, rel=1e-5)
    assert mean_loss(WORKLOAD, models["plain_store"], [batch]) < before - 0.1
    assert models["plain_store"].training
    assert steps == list(range(12))


def test_the_mean_loss_is_that_of_all_batches():
    model = STORE.apply(WORKLOAD.build_model())
    batches = [WORKLOAD.build_batch(number) for number in range(2)]
    each = [mean_loss(WORKLOAD, model, [batch]) for batch in batches]
    assert mean_loss(WORKLOAD, model, batches) == pytest.approx(sum(each) / 2)
    assert each[0] != each[1]


def test_one_batch_leaves_nothing_to_time():
    with pytest.raises(ValueError, match="at least 2 steps"):
        train_in_turns(WORKLOAD, {}, [WORKLOAD.build_batch()], 1e-2)
