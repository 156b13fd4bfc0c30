"""Training reversibly and deploying the ordinary network: what is saved, against transformers and PEFT alone."""

import io
import json

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import revformers as rf
from revformers.checkpoints.load import load_tokenizer
from revformers.checkpoints.marks import KEY
from revformers.errors import UserError
from revformers.models.parts import record_provenance
from revformers.models.provenance import Provenance
from revformers.training.finetune import finetune
from revformers.training.finetune_data import load_finetune_data
from revformers.training.finetune_recipe import load_finetune_recipe
from tests.training.tiny_finetune import tiny_finetune_recipe

LORA = {"adapter.kind": "lora", "adapter.rank": 2}


def run(shared, tmp_path, overrides):
    options = {"output": str(tmp_path / "run"), "deploy": "ordinary", "training.learning_rate": 1e-2, **overrides}
    return finetune(tiny_finetune_recipe(shared, options), console=Console(file=io.StringIO()))


def transformers_loss(model, result):
    recipe = load_finetune_recipe(result.directory / "recipe.yaml")
    tokenizer = load_tokenizer(recipe.model.name)
    blocks = torch.stack([block["input_ids"] for block in load_finetune_data(recipe.data, tokenizer).validation])
    with torch.no_grad():
        return model.eval()(input_ids=blocks, labels=blocks).loss.item()


@pytest.mark.thorough
@pytest.mark.parametrize("predictor", ["none", "state"])
def test_trained_weights_are_saved_as_the_ordinary_network(shared, tmp_path, predictor):
    result = run(shared, tmp_path, {"conversion.bits": 4, "conversion.predictor": predictor})
    config = json.loads((result.directory / "model" / "config.json").read_text())
    assert KEY not in config
    assert not any("update_predictor" in name for name in load_file(result.directory / "model" / "model.safetensors"))
    deployed = AutoModelForCausalLM.from_pretrained(result.directory / "model")
    metrics = result.metrics
    assert transformers_loss(deployed, result) == pytest.approx(metrics["deployed_validation_loss"], rel=1e-5)
    assert metrics["deployed_validation_loss"] < metrics["original_validation_loss"] - 0.1  # it has learnt
    # The negative control: the reversible network is another one, by more than rounding.
    assert abs(metrics["deployed_validation_loss"] / metrics["validation_loss"] - 1) > 1e-5


@pytest.mark.thorough
def test_update_predictors_stay_as_they_were_fitted(shared, tmp_path):
    """They are dropped in the end, so nothing may be learnt in them."""
    result = run(shared, tmp_path, {"conversion.bits": 2, "training.max_steps": 2, "training.save_steps": 2})
    fitted = load_file(next((result.directory / "conversion").glob("*.safetensors")))
    trained = load_file(next(result.directory.glob("checkpoint-*/model.reversible.safetensors")))
    names = [name for name in trained if ".update_predictor." in name]
    assert len(names) == len(fitted)
    for name in names:
        assert torch.equal(trained[name], fitted[name.removeprefix("model.layers.").replace(".update_predictor", "")])
    assert not torch.equal(
        trained["model.layers.0.mlp.down_proj.weight"],
        AutoModelForCausalLM.from_pretrained(shared / "model").model.layers[0].mlp.down_proj.weight,
    )


@pytest.mark.thorough
@pytest.mark.filterwarnings("error:You have passed exclude_modules")
def test_an_adapter_is_one_of_the_ordinary_network(shared, tmp_path):
    result = run(shared, tmp_path, {**LORA, "conversion.bits": 4, "adapter.merge": True})
    saved = load_file(result.directory / "adapter" / "adapter_model.safetensors")
    assert saved
    assert not any("update_predictor" in name for name in saved)
    base = AutoModelForCausalLM.from_pretrained(shared / "model")
    adapted = PeftModel.from_pretrained(base, str(result.directory / "adapter"))
    merged = AutoModelForCausalLM.from_pretrained(result.directory / "model")
    assert not (result.directory / "README.md").exists()
    for name in ("adapter", "model"):
        card = (result.directory / name / "README.md").read_text()
        assert "needs nothing of revformers" in card
        assert f"validation loss {result.metrics['deployed_validation_loss']:.4f}" in card
    for deployed in (adapted, merged):
        loss = transformers_loss(deployed, result)
        assert loss == pytest.approx(result.metrics["deployed_validation_loss"], rel=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_loss_is_that_of_the_merged_model_where_there_is_one(shared, tmp_path, dtype):
    """Merging rounds to the dtype of the weights."""
    result = run(shared, tmp_path, {**LORA, "conversion.bits": 4, "adapter.merge": True, "model.dtype": dtype})
    deployed = AutoModelForCausalLM.from_pretrained(result.directory / "model")
    assert deployed.dtype == getattr(torch, dtype)
    metrics = json.loads((result.directory / "metrics.json").read_text())
    assert transformers_loss(deployed, result) == pytest.approx(metrics["deployed_validation_loss"], rel=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_an_adapter_of_the_embeddings_is_saved_with_those_that_it_is_added_to(shared, tmp_path, module):
    """And not with those that it is merged into."""
    options = {**LORA, "conversion.bits": 6, "adapter.merge": True, "adapter.target_modules": f".*({module}|q_proj)"}
    result = run(shared, tmp_path, options)
    base = AutoModelForCausalLM.from_pretrained(shared / "model")
    adapted = PeftModel.from_pretrained(base, str(result.directory / "adapter"))
    assert transformers_loss(adapted, result) == pytest.approx(result.metrics["deployed_validation_loss"], rel=1e-5)
    assert any(
        f"{module}.base_layer" in name for name in load_file(result.directory / "adapter/adapter_model.safetensors")
    )


@pytest.mark.thorough
@pytest.mark.parametrize("base", ["someone/base", None])
def test_the_adapter_of_a_converted_model_does_not_name_that_one(shared, tmp_path, base):
    """Without revformers it could not be loaded."""
    model = AutoModelForCausalLM.from_pretrained(shared / "model")
    rf.convert(model, 4, torch.arange(512).view(16, 32) % 300)
    record_provenance(model, Provenance(base_model=base))
    model.save_pretrained(tmp_path / "converted")
    options = {"model.name": str(tmp_path / "converted"), "model.tokenizer": str(shared / "model")}
    result = run(shared, tmp_path, {**LORA, **options, "conversion.bits": None})
    config = json.loads((result.directory / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == (base or "")
    assert config["exclude_modules"] is None


def test_few_bits_are_refused(shared, tmp_path):
    with pytest.raises(
        UserError, match=r"With a mean of 1 bits the model is too far from the ordinary network .* convert with 1.5"
    ):
        run(shared, tmp_path, {"conversion.bits": 1})


@pytest.mark.thorough
def test_without_the_line_the_adapter_trains_the_predictors_too(shared, tmp_path):
    result = run(shared, tmp_path, {**LORA, "deploy": "reversible"})
    assert any("update_predictor" in name for name in load_file(result.directory / "adapter/adapter_model.safetensors"))
    assert "deployed_validation_loss" not in result.metrics


@pytest.mark.parametrize("options", [{"exclude_modules": ["nothing"]}, {"modules_to_save": ["update_predictor"]}])
def test_an_adapter_in_the_predictors_is_refused(shared, tmp_path, options):
    with pytest.raises(UserError, match="The adapter trains update predictors, which deploy: ordinary leaves out"):
        run(shared, tmp_path, {**LORA, "conversion.bits": 4, "adapter.options": options})


def test_dynamics_far_from_the_ordinary_network_are_refused(shared, tmp_path):
    model = rf.make_reversible(AutoModelForCausalLM.from_pretrained(shared / "model"), rf.Midpoint())
    model.save_pretrained(tmp_path / "midpoint")
    options = {"model.name": str(tmp_path / "midpoint"), "model.tokenizer": str(shared / "model")}
    with pytest.raises(UserError, match="deploy: ordinary needs dynamics with blends"):
        run(shared, tmp_path, {**options, "conversion.bits": None})
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.thorough
def test_a_run_is_not_resumed_for_another_deployment(shared, tmp_path):
    run(shared, tmp_path, {"conversion.bits": 4, "training.max_steps": 1})
    options = {"output": str(tmp_path / "run"), "conversion.bits": 4, "training.max_steps": 2}
    recipe = tiny_finetune_recipe(shared, options)
    with pytest.raises(UserError, match="was started with deploy 'ordinary', not 'reversible'"):
        finetune(recipe, resume=True, console=Console(file=io.StringIO()))
