import pytest
import torch
from peft import LoraConfig, get_peft_model

import revformers as rf
from revformers.checkpoints.model_config import identity_of
from revformers.planning.model_workload import workload_of
from tests.tiny_models import tiny

BATCH = {"input_ids": torch.zeros(2, 3, dtype=torch.int64)}


def reversible(**options):
    return rf.make_reversible(tiny("llama", **options), rf.Midpoint())


def test_a_workload_is_that_of_the_ordinary_network_on_batches_of_the_shape():
    model = reversible()
    workload, remarks = workload_of(model, BATCH, "sgd")
    assert (workload.batch_size, workload.sequence_length) == (2, 3)
    assert (workload.precision, workload.training, workload.optimizer) == ("float32", "full", "sgd")
    assert workload_of(model.bfloat16(), BATCH, "sgd")[0].precision == "bfloat16"
    assert remarks == ()
    assert identity_of(model.config)
    assert not identity_of(workload.model_config)


def test_what_the_planner_leaves_out_is_a_remark():
    model = reversible()
    model.get_input_embeddings().requires_grad_(False)
    assert "training all weights, also the frozen ones" in " ".join(workload_of(model, BATCH, "adamw")[1])
    adapted = get_peft_model(reversible(), LoraConfig(r=4, target_modules=["q_proj"]))
    workload, remarks = workload_of(adapted, BATCH, "adamw")
    assert (workload.training, workload.rank) == ("lora", 4)
    assert remarks == ("Activations and time are those of LoRA of rank 4 on all linear layers.",)


def test_so_is_a_mask_of_padding():
    model, mask = reversible(), torch.ones(2, 3, dtype=torch.int64)
    assert workload_of(model, BATCH | {"attention_mask": mask}, "adamw")[1] == ()
    mask[0, 0] = 0
    assert "mask of padding" in "".join(workload_of(model, BATCH | {"attention_mask": mask}, "adamw")[1])


@pytest.mark.parametrize("batch", [{"labels": torch.ones(2, 3)}, {"input_ids": torch.ones(3)}, {"input_ids": [[1, 2]]}])
def test_a_batch_without_a_shape_is_refused(batch):
    with pytest.raises(ValueError, match='A batch holds "input_ids"'):
        workload_of(reversible(), batch, "adamw")


def test_precisions_without_a_plan_are_refused():
    with pytest.raises(ValueError, match="not in float16"):
        workload_of(reversible().half(), BATCH, "adamw")
    with torch.autocast("cpu"), pytest.raises(ValueError, match="without autocast"):
        workload_of(reversible(), BATCH, "adamw")
