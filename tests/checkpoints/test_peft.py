"""An adapter is loaded on the network that it was trained on, and refused on every other, by whatever route."""

import json

import peft.utils.hotswap
import pytest
import torch
import transformers.integrations.peft
from peft import (
    AutoPeftModelForCausalLM,
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    PeftConfig,
    PeftMixedModel,
    PeftModel,
    TaskType,
    get_peft_model,
)
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM, LlamaForSequenceClassification, pipeline

import revformers as rf
from revformers.checkpoints.adapter_base import DESCRIPTION, MARK
from tests.checkpoints.adapters import BASES, REFUSED, base, by_peft, wrong_base
from tests.conversion.test_convert import TEXT
from tests.tiny_trainers import (
    DYNAMICS,
    logits,
    lora,
    saved,
    small,
    what_it_is,
    with_adapter,
)

WRONG = ("ordinary", "other dynamics", "other predictors")


def by_mixed_peft(model, directory):
    return PeftMixedModel.from_pretrained(model, directory)


def by_transformers(model, directory):
    model.load_adapter(directory)
    return model


def by_swapping(model, directory):
    model = with_adapter(model)
    peft.utils.hotswap.hotswap_adapter(model, directory, "default")
    return model


ROUTES = [by_peft, by_mixed_peft, by_transformers, by_swapping]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "route"),
    [
        *((kind, by_peft) for kind in BASES),
        *(("converted", route) for route in ROUTES[1:]),
        ("memory", by_transformers),
    ],
)
def test_an_adapter_is_refused_on_a_wrong_base_and_loaded_on_the_right_one(kind, route, folder, adapters):
    directory, expected, network = adapters[kind]
    for wrong in WRONG:
        with pytest.raises(ValueError, match=REFUSED):
            route(wrong_base(wrong, folder), directory)
    loaded = route(base(kind, folder), str(directory))
    assert what_it_is(loaded) == network
    assert torch.equal(logits(loaded), expected)


@pytest.mark.parametrize("route", ROUTES)
def test_an_adapter_of_an_ordinary_network_is_refused_on_a_reversible_one(route, folder, ordinary_adapter):
    route(wrong_base("ordinary", folder), ordinary_adapter)
    for kind in ("memory", "converted"):
        with pytest.raises(ValueError, match="was trained on an ordinary network, and this model is reversible"):
            route(base(kind, folder), ordinary_adapter)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", BASES)
def test_loaders_that_find_the_base_themselves_load_the_right_one_or_none(kind, adapters):
    directory, expected, _ = adapters[kind]
    directory = str(directory)
    loaders = [
        AutoPeftModelForCausalLM.from_pretrained,
        AutoModelForCausalLM.from_pretrained,
        lambda path: pipeline("text-generation", path).model,
    ]
    for load in loaders:
        if kind in ("memory", "converted"):  # named after the ordinary network, which they load
            with pytest.raises(ValueError, match=REFUSED):
                load(directory)
        else:
            assert torch.equal(logits(load(directory)), expected)


def test_a_saved_base_that_was_changed_in_memory_is_described_as_it_was_changed(folder, tmp_path):
    model = rf.from_pretrained(saved(folder / "converted", converted=True))
    for number, change in enumerate((lambda: rf.make_reversible(model, DYNAMICS), lambda: converted_anew(model))):
        change()
        adapted = with_adapter(model)
        adapted.save_pretrained(tmp_path / str(number))
        assert torch.equal(logits(rf.load_adapter(tmp_path / str(number))), logits(adapted))
        adapted.unload()


def converted_anew(model):
    rf.convert(rf.make_residual(model), 0.5, TEXT[3:])


@pytest.mark.thorough
def test_several_adapters_of_one_model_are_each_refused_on_the_wrong_base(folder, tmp_path):
    adapted = with_adapter(base("converted", folder))
    adapted.add_adapter("second", lora(init_lora_weights=False))
    adapted.save_pretrained(tmp_path)
    for name, directory in (("default", tmp_path), ("second", tmp_path / "second")):
        adapted.set_adapter(name)
        with pytest.raises(ValueError, match=REFUSED):
            PeftModel.from_pretrained(wrong_base("ordinary", folder), directory)
        assert torch.equal(logits(rf.load_adapter(directory)), logits(adapted))
    assert torch.equal(logits(rf.load_adapter(tmp_path, subfolder="second")), logits(adapted))
    loaded = PeftModel.from_pretrained(base("converted", folder), tmp_path)
    loaded.load_adapter(tmp_path / "second", "second")
    loaded.set_adapter("second")
    assert torch.equal(logits(loaded), logits(adapted))


def test_saving_some_of_the_adapters_describes_these(folder, tmp_path):
    adapted = with_adapter(base("memory", folder))
    adapted.add_adapter("second", lora())
    adapted.save_pretrained(tmp_path, selected_adapters=["second"])
    assert not (tmp_path / DESCRIPTION).exists()
    assert (tmp_path / "second" / DESCRIPTION).is_file()


def test_saving_some_of_the_adapters_leaves_what_lies_beside_them_alone(folder, tmp_path):
    with_adapter(wrong_base("ordinary", folder)).save_pretrained(tmp_path)
    adapted = with_adapter(base("memory", folder))
    adapted.add_adapter("second", lora())
    adapted.save_pretrained(tmp_path, True, ["second"])
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert not (tmp_path / DESCRIPTION).exists()


def test_an_adapter_that_is_saved_over_one_of_a_reversible_network_is_of_its_own(folder, tmp_path):
    with_adapter(base("memory", folder)).save_pretrained(tmp_path)
    adapted = with_adapter(wrong_base("ordinary", folder))
    adapted.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(wrong_base("ordinary", folder), tmp_path)), logits(adapted))
    with pytest.raises(ValueError, match="was trained on an ordinary network"):
        PeftModel.from_pretrained(base("memory", folder), tmp_path)
    with pytest.raises(ValueError, match=r"load it with peft\.PeftModel"):
        rf.load_adapter(tmp_path)


def test_a_configuration_without_a_type_is_read_as_peft_reads_it(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": null}')
    assert PeftConfig.from_json_file(str(tmp_path / "adapter_config.json")) == {"peft_type": None}


@pytest.mark.parametrize("kind", ["converted", "converted and saved"])
def test_predictors_that_an_adapter_trains_in_full_come_back(kind, folder, tmp_path):
    adapted = get_peft_model(base(kind, folder), lora(target_modules=["q_proj"], modules_to_save=["update_predictor"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1)
    adapted.save_pretrained(tmp_path)
    for load in (rf.load_adapter, lambda place: PeftModel.from_pretrained(base(kind, folder), place)):
        assert torch.equal(logits(load(tmp_path)), logits(adapted))


@pytest.mark.parametrize("kind", ["memory", "converted"])
def test_a_base_of_another_size_stays_what_it_was(kind, adapters):
    own = small().config
    own.hidden_size, own.head_dim = 2 * own.hidden_size, 2 * own.head_dim
    other = LlamaForCausalLM(own)
    with pytest.raises(ValueError, match=r"does not fit this LlamaForCausalLM, whose weights have other sizes"):
        rf.load_adapter(adapters[kind][0], other)
    assert what_it_is(other) is None
    assert type(other) is LlamaForCausalLM


@pytest.mark.parametrize("options", [{"use_dora": True}, {"init_lora_weights": "pissa"}], ids=["dora", "pissa"])
def test_adapters_that_read_or_change_the_weights_they_adapt_leave_the_predictors_out(options, folder, tmp_path):
    """As docs/guides/trainers.md says; the first predictor has rows of zeros here, and PiSSA changes the base."""

    def saved_and_loaded(**more):
        adapted = get_peft_model(base("converted", folder), lora(target_modules="all-linear", **options, **more))
        expected = logits(adapted)
        adapted.save_pretrained(tmp_path)
        return logits(rf.load_adapter(tmp_path)), expected

    with pytest.raises((rf.StateRangeError, ValueError), match=r"nan|they differ in .* of the update predictors"):
        saved_and_loaded()
    torch.testing.assert_close(*saved_and_loaded(exclude_modules=".*update_predictor.*"), rtol=1e-3, atol=1e-3)


def test_an_adapter_of_a_classifier(folder, tmp_path):
    model = LlamaForSequenceClassification.from_pretrained(folder / "ordinary", num_labels=3, pad_token_id=0)
    rf.make_reversible(model, DYNAMICS)
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        adapted.base_model.model.score.modules_to_save["default"].weight.add_(1)
    adapted.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=REFUSED):
        AutoPeftModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    loaded = rf.load_adapter(tmp_path, num_labels=3, pad_token_id=0)
    assert type(loaded).__name__ == "PeftModelForSequenceClassification"
    assert torch.equal(logits(loaded), logits(adapted))


def test_embeddings_that_were_not_resized_are_not_saved(adapters):
    for directory, _, _ in adapters.values():
        assert not any("embed_tokens" in name for name in load_file(directory / "adapter_model.safetensors"))


@pytest.fixture
def any_peft(monkeypatch):
    """Let transformers add adapters with a release of PEFT that is older than the one it asks for."""
    monkeypatch.setattr(transformers.integrations.peft, "MIN_PEFT_VERSION", "0.18.0")


@pytest.mark.parametrize("kind", BASES)
def test_an_adapter_that_transformers_saves_knows_its_base(kind, folder, tmp_path, any_peft):
    model = base(kind, folder)
    torch.manual_seed(0)
    model.add_adapter(lora(init_lora_weights=False))
    expected = logits(model)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA" + MARK
    for wrong in WRONG:
        with pytest.raises(ValueError, match=REFUSED):
            by_transformers(wrong_base(wrong, folder), tmp_path)
    assert torch.equal(logits(by_transformers(base(kind, folder), tmp_path)), expected)
    assert torch.equal(logits(rf.load_adapter(tmp_path)), expected)


def test_an_adapter_of_an_ordinary_network_is_saved_as_peft_saves_it(ordinary_adapter, folder, tmp_path, any_peft):
    assert not (ordinary_adapter / DESCRIPTION).exists()
    model = wrong_base("ordinary", folder)
    model.add_adapter(lora())
    model.save_pretrained(tmp_path)
    for directory in (ordinary_adapter, tmp_path):
        assert json.loads((directory / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_the_auto_class_of_peft_loads_an_adapter_that_was_made_without_a_task(tmp_path):
    rf.make_reversible(small(), DYNAMICS).save_pretrained(tmp_path / "base")
    base = rf.from_pretrained(tmp_path / "base")
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(adapted))
