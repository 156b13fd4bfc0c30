import dataclasses

import pytest
import torch
from transformers import AutoConfig

from revformers import Midpoint
from revformers.benchmark.memory import Measurer
from revformers.benchmark.workload import PLAIN_CHECKPOINT, PLAIN_STORE, Arm, llama_config
from revformers.benchmark.workload import Workload as Measured
from revformers.memory.model_size import meta_model, model_size
from revformers.memory.plan import Workload, _largest, make_plan, step_memory, step_operations

CONFIG = llama_config(5, 128, 256, 256)
WORKLOAD = Workload(AutoConfig.for_model(**CONFIG), dtype=torch.float32, head="own")


@pytest.mark.parametrize(
    ("name", "bits", "arm"),
    [
        ("store", None, Arm(PLAIN_STORE)),
        ("checkpoint", None, Arm(PLAIN_CHECKPOINT)),
        ("rebuild", 0, Arm("rebuild", Midpoint().to_dict())),
    ],
)
def test_the_plan_is_near_the_measured_peak(name, bits, arm):
    measured = Measurer().peak(Measured(CONFIG, 2, 256, head="own"), arm).peak
    planned = step_memory(WORKLOAD, name, bits, 2, 256).total
    assert measured <= planned <= 1.1 * measured


def test_side_information_and_checkpoints_grow_with_depth():
    deep = dataclasses.replace(WORKLOAD, config=AutoConfig.for_model(**CONFIG | {"num_hidden_layers": 10}))
    elements = 2 * 256 * 128
    for name, bits, layer_bytes in (
        ("rebuild", 0, 0),
        ("rebuild", 2, elements / 4),
        ("checkpoint", None, 4 * elements),
    ):
        grown = step_memory(deep, name, bits, 2, 256).total - step_memory(WORKLOAD, name, bits, 2, 256).total
        assert grown == pytest.approx(5 * layer_bytes, abs=5 * 6000)
    assert step_memory(deep, "offload", None, 2, 256).host == pytest.approx(10 * 4 * elements, rel=0.02)


def test_parameters_are_those_of_a_real_model():
    real = Measured(CONFIG, 1, 8).build_model()
    size = model_size(meta_model(WORKLOAD.config, 5, torch.float32), "adamw")
    assert size.parameters == real.num_parameters()
    assert (size.gradients, size.optimizer) == (4 * size.parameters, 8 * size.parameters)


def test_checkpointing_and_rebuilding_cost_at_most_a_forward_pass():
    stored, checkpointed, rebuilt = (step_operations(WORKLOAD, name, 64) for name in ("store", "checkpoint", "rebuild"))
    assert stored < checkpointed < rebuilt <= stored * 4 / 3


def test_the_largest_batch_fits_and_one_more_does_not():
    room = 30 * 2**20
    size = model_size(meta_model(WORKLOAD.config, 5, torch.float32), "adamw").total
    plan = make_plan(WORKLOAD, size + room, 64, bits=(0,))
    for way in plan.ways:
        needed = [step_memory(WORKLOAD, way.name, way.bits, way.largest_batch + more, 64).total for more in (0, 1)]
        assert needed[0] <= room < needed[1]
    assert plan.recommendation.startswith("Store activations")


def test_the_search_of_a_convex_cost():
    assert _largest(lambda number: max(10 * number, 30 * number - 100), 500) == 20
    assert _largest(lambda number: 10 * number, 9) == 0


def test_an_adapter_has_few_gradients():
    pytest.importorskip("peft")
    plan = make_plan(dataclasses.replace(WORKLOAD, training="lora"), 2**28, 64, bits=(0,))
    assert plan.size.trained < plan.size.parameters / 5


def test_weights_that_do_not_fit():
    plan = make_plan(WORKLOAD, 2**20, 64, bits=(0,))
    assert all(way.largest_batch == 0 for way in plan.ways)
    assert "alone do not fit" in plan.recommendation
