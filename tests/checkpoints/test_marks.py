import json

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

import revformers as rf
from revformers.checkpoints.marks import KEY, MODEL_TYPE, PREFIX, WEIGHTS_NOTE
from tests.test_reversible import llama


def test_a_saved_configuration_bears_every_mark_and_an_ordinary_one_none(tmp_path):
    model = llama(layers=1)
    for folder, make in (("ordinary", lambda: None), ("reversible", lambda: rf.make_reversible(model, rf.Midpoint()))):
        make()
        model.save_pretrained(tmp_path / folder)
    ordinary, marked = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("ordinary", "reversible")
    )
    assert (marked["model_type"], marked["transformers_weights"]) == (MODEL_TYPE, WEIGHTS_NOTE)
    assert marked["architectures"] == [f"{PREFIX}LlamaForCausalLM"]
    assert marked[KEY]["ordinary_model_type"] == ordinary["model_type"] == "llama"
    assert KEY not in ordinary
    assert "transformers_weights" not in ordinary


def test_transformers_knows_none_of_the_marks():
    assert MODEL_TYPE not in CONFIG_MAPPING_NAMES
    assert not [name for name in dir(transformers) if name.startswith(f"{PREFIX}Llama")]
