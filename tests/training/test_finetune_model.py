from dataclasses import replace

import pytest

from revformers.errors import UserError
from revformers.training import finetune_model
from revformers.training.finetune_model import check_recipe, contents, lora_config
from revformers.training.finetune_recipe import (
    AdapterSection,
    AnnealingSection,
    ConversionSection,
    FinetuneDataSection,
    FinetuneRecipe,
    LossSection,
    PretrainedSection,
)
from revformers.training.recipe import TrainingSection

RECIPE = FinetuneRecipe(
    output="run", model=PretrainedSection(name="model"), data=FinetuneDataSection(source="text.txt")
)
PLATEAU = TrainingSection(lr_scheduler_type="reduce_lr_on_plateau")
MAIN = PretrainedSection(name="model", revision="main")
INT8 = PretrainedSection(name="model", quantization="int8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": ""}, "names no run directory; set output"),
        ({"model": PretrainedSection()}, "names no model to fine-tune; set model.name"),
        ({"data": FinetuneDataSection()}, "names no data to train on; set data.source"),
        ({"model": INT8}, "Quantised weights cannot be trained; set adapter.kind"),
        ({"model": replace(INT8, name="a.gguf")}, "GGUF file are dequantised; set model.quantization to none"),
        ({"adapter": AdapterSection(merge=True)}, "adapter.merge needs an adapter"),
        ({"adapter": AdapterSection(kind="lora", merge=True), "model": INT8}, "would round the adapter"),
        (
            {"annealing": AnnealingSection(4), "training": PLATEAU},
            "compares validation losses, which rise by themselves",
        ),
        ({"conversion": ConversionSection(options={"predictr": 3})}, "conversion.options has no 'predictr'"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(changes, message):
    check_recipe(RECIPE)
    with pytest.raises(UserError, match=message):
        check_recipe(replace(RECIPE, **changes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rnk": 3}, "adapter.options has no 'rnk'"),
        ({"layer_replication": [[0, 3], [2, 6]]}, "layer_replication changes the layers"),
        ({"layers_to_transform": [1]}, "PEFT refuses the adapter section: `layers_to_transform` cannot be used"),
    ],
)
def test_an_adapter_that_peft_does_not_have_is_refused(options, message):
    pytest.importorskip("peft")
    assert lora_config(AdapterSection(kind="lora", rank=4)).r == 4
    with pytest.raises(UserError, match=message):
        lora_config(AdapterSection(kind="lora", options=options))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"tokenizer": "model@main", "configuration": "model@main"}),
        ({"model": replace(MAIN, tokenizer="own")}, {"tokenizer": "own@None", "configuration": "model@main"}),
        (
            {"adapter": AdapterSection(kind="lora")},
            {"tokenizer": "model@main", "configuration": "model@main", "weights": "model@main"},
        ),
        (
            {"loss": LossSection(distillation=1.0)},
            {"tokenizer": "model@main", "configuration": "model@main", "weights": "model@main"},
        ),
        ({"model": PretrainedSection("a.gguf")}, {"weights": "a.gguf@None"}),
        ({"model": PretrainedSection("a.gguf", tokenizer="own")}, {"tokenizer": "own@None", "weights": "a.gguf@None"}),
    ],
)
def test_what_a_run_reads_of_its_model_depends_on_what_its_checkpoints_hold(changes, expected, monkeypatch):
    for part in ("tokenizer", "configuration", "weights"):
        monkeypatch.setattr(finetune_model, f"content_of_{part}", lambda name, revision: f"{name}@{revision}")
    found = contents(replace(RECIPE, **{"model": MAIN, **changes}))
    assert {words.split()[0].rstrip(","): content for words, content in found.items()} == expected
