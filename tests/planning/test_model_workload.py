import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

import revformers as rf
from revformers.checkpoints.model_config import identity_of
from revformers.planning.model_size import model_size, size_in
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
    assert workload_of(model.to("meta"), BATCH, "sgd")[0].precision == "bfloat16"
    assert identity_of(model.config)
    assert not identity_of(workload.model_config)


def test_a_batch_longer_than_the_table_of_positions_is_refused():
    model = rf.make_reversible(tiny("gpt2"), rf.Midpoint())
    longest = model.config.max_position_embeddings
    assert workload_of(model, {"input_ids": torch.zeros(1, longest, dtype=torch.int64)}, "sgd")
    with pytest.raises(ValueError, match=f"positions for {longest} tokens only, and the batch has {longest + 1}"):
        workload_of(model, {"input_ids": torch.zeros(1, longest + 1, dtype=torch.int64)}, "sgd")


def test_what_the_planner_leaves_out_is_a_remark():
    model = reversible()
    model.get_input_embeddings().requires_grad_(False)
    assert "training all weights, also the frozen ones" in " ".join(workload_of(model, BATCH, "adamw")[1])


def test_an_adapter_is_planned_as_it_is():
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="gaussian")
    adapted = get_peft_model(reversible(), config)
    workload, remarks = workload_of(adapted, BATCH, "adamw")
    assert (workload.training, workload.adapter.r, workload.adapter.target_modules) == ("lora", 4, {"q_proj"})
    assert remarks == ()
    assert size_in(workload, None).trained == model_size(adapted, "adamw").trained
    assert adapted.peft_config["default"].init_lora_weights == "gaussian"


def test_an_adapter_of_some_layers_is_planned_in_all_of_them():
    some = LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[1])
    adapted = get_peft_model(reversible(), some)
    workload, remarks = workload_of(adapted, BATCH, "adamw")
    assert "those of the adapter in every layer" in " ".join(remarks)
    assert size_in(workload, None).trained > model_size(adapted, "adamw").trained
    ranks = LoraConfig(r=4, target_modules=["q_proj"], rank_pattern={"layers.1.self_attn.q_proj": 8})
    assert "layers like the first ones" in " ".join(workload_of(get_peft_model(reversible(), ranks), BATCH, "sgd")[1])


def test_adapters_without_a_plan_are_refused():
    adapted = get_peft_model(reversible(), LoraConfig(r=4, target_modules=["q_proj"]))
    adapted.get_input_embeddings().weight.requires_grad_()
    with pytest.raises(ValueError, match=r"Beside the adapter, [0-9,]+ weights of the model train"):
        workload_of(adapted, BATCH, "adamw")
    adapted.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="the model has default, second"):
        workload_of(adapted, BATCH, "adamw")
    prompted = get_peft_model(reversible(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="not PROMPT_TUNING"):
        workload_of(prompted, BATCH, "adamw")


def test_a_model_of_which_nothing_trains_is_refused():
    with pytest.raises(ValueError, match="Nothing trains"):
        workload_of(reversible().requires_grad_(False), BATCH, "adamw")


@pytest.mark.parametrize(
    "family", ["LlamaForSequenceClassification", "LlamaModel", "BertForMaskedLM", "Gemma3ForConditionalGeneration"]
)
def test_what_is_no_causal_language_model_is_refused(family):
    """The planner would take the causal language model of the same configuration, with another head, for it."""
    if family == "Gemma3ForConditionalGeneration":
        pytest.importorskip("transformers", minversion="5.24", reason="before, it has no tiny models of several parts")
    with pytest.raises(ValueError, match=f"causal language models .*, and {family} is none"):
        workload_of(rf.make_reversible(tiny(family), rf.Midpoint()), BATCH, "adamw")


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
