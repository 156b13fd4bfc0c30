from types import SimpleNamespace

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import revformers as rf
from revformers.checkpoints.auto_config import AutoReversibleConfig, extend
from revformers.checkpoints.marks import MODEL_TYPE
from revformers.checkpoints.model_config import ReversibleConfig, identity_of
from tests.test_reversible import llama


@pytest.fixture
def saved(tmp_path):
    model = rf.make_reversible(llama(layers=1), rf.Leapfrog())
    model.config.save_pretrained(tmp_path)
    return tmp_path


def test_the_auto_class_reads_the_configuration_of_the_family_and_knows_its_models(saved):
    config = AutoConfig.from_pretrained(saved)
    assert isinstance(config, LlamaConfig)
    assert isinstance(config, ReversibleConfig)
    assert identity_of(config).dynamics == rf.Leapfrog()
    assert rf.describe(AutoModelForCausalLM.from_config(config)).recurrence == rf.Leapfrog().recurrence


def test_without_the_entry_of_this_library_the_model_type_is_unknown(saved):
    module = SimpleNamespace(AutoConfig=AutoConfig)
    del CONFIG_MAPPING._extra_content[MODEL_TYPE]
    try:
        with pytest.raises(ValueError, match="pip install revformers"):
            AutoConfig.from_pretrained(saved)
    finally:
        extend(module)
    assert CONFIG_MAPPING[MODEL_TYPE] is AutoReversibleConfig
