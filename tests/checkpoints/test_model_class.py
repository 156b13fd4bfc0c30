"""A reversible model stays itself: in copies and pickles, under every head, through every way of loading."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForMaskedLM,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

import revformers as rf
from revformers.checkpoints.model_class import ReversibleModel, reversible_class
from revformers.errors import ModelFilesError
from revformers.models.parts import reversible_stack
from tests.conversion.test_convert import TEXT, smooth_llama

IDS = torch.arange(1, 13).view(2, 6)
DYNAMICS = rf.BlendedMidpoint([0.25, 1, -0.5, 1], readout="mean")
HEADS = {
    "LlamaForCausalLM": AutoModelForCausalLM,
    "LlamaForSequenceClassification": AutoModelForSequenceClassification,
    "LlamaForTokenClassification": AutoModelForTokenClassification,
    "LlamaForQuestionAnswering": AutoModelForQuestionAnswering,
    "LlamaModel": AutoModel,
}


def config(**options):
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
    return LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, **options)


def with_head(name):
    torch.manual_seed(0)
    return rf.make_reversible(getattr(transformers, name)(config(num_labels=3)).eval(), DYNAMICS)


@torch.no_grad()
def output(model):
    return model.eval()(IDS)[0]


def same(model, other):
    """Whether two models are the same reversible network."""
    stacks = reversible_stack(model), reversible_stack(other)
    if None in stacks or stacks[0].dynamics != stacks[1].dynamics:
        return False
    return torch.equal(output(model), output(other))


@pytest.mark.parametrize("name", HEADS)
def test_every_head_loads_as_itself(name, tmp_path):
    model, auto = with_head(name), HEADS[name]
    model.save_pretrained(tmp_path)
    for load in (rf.from_pretrained, auto.from_pretrained, type(model).from_pretrained):
        loaded = load(tmp_path)
        assert isinstance(loaded, getattr(transformers, name))
        assert same(loaded, model)
    # The comparison can fail: the same weights as an ordinary network give something else.
    expected = output(model)
    assert not torch.equal(output(rf.make_residual(model)), expected)


def test_a_language_model_is_the_start_of_a_classifier_as_in_transformers(tmp_path):
    model = with_head("LlamaForCausalLM")
    model.save_pretrained(tmp_path)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert reversible_stack(classifier).dynamics == DYNAMICS
    assert torch.equal(output(classifier.model), output(model.model))
    assert classifier.score.weight.any()


def test_a_head_whose_decoder_has_other_names_is_refused(tmp_path):
    with_head("LlamaForQuestionAnswering").save_pretrained(tmp_path)
    with pytest.raises(ModelFilesError, match=r"saved as LlamaForQuestionAnswering, .* load it with revformers"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_the_decoder_alone_is_a_reversible_model(tmp_path):
    model = with_head("LlamaForCausalLM")
    model.model.save_pretrained(tmp_path)
    assert same(AutoModel.from_pretrained(tmp_path), model.model)


def test_a_bare_decoder_keeps_the_signature_that_trainers_read():
    assert "attention_mask" in transformers.utils.generic.inspect.signature(with_head("LlamaModel").forward).parameters


def test_encoders_are_reversible_too(tmp_path):
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2}
    model = BertForMaskedLM(BertConfig(vocab_size=64, max_position_embeddings=32, **small))
    ordinary = output(model)
    rf.make_reversible(model, rf.Residual(), "store")
    # The field of a whole layer is layer(x) - x, which rounds otherwise than the layer alone.
    torch.testing.assert_close(output(model), ordinary, atol=1e-4, rtol=1e-4)
    rf.make_reversible(model.train(), rf.Midpoint())
    assert rf.verify_gradients(model, {"input_ids": IDS}).bit_exact  # with dropout
    model.save_pretrained(tmp_path)
    assert same(AutoModelForMaskedLM.from_pretrained(tmp_path), model)
    assert same(rf.from_pretrained(tmp_path), model)


def test_the_language_model_inside_another_model(tmp_path):
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**small, image_size=8, patch_size=4, projection_dim=8)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=config(), image_token_index=63))
    rf.make_reversible(model, DYNAMICS)
    model.save_pretrained(tmp_path / "whole")
    for load in (rf.from_pretrained, AutoModelForImageTextToText.from_pretrained):
        assert same(load(tmp_path / "whole"), model)
    assert same(pickle.loads(pickle.dumps(model)), model)
    assert reversible_stack(type(model)(model.config)).dynamics == DYNAMICS
    model.model.language_model.save_pretrained(tmp_path / "part")
    assert same(AutoModel.from_pretrained(tmp_path / "part"), model.model.language_model)


def test_a_class_that_is_none_of_transformers_is_loaded_by_itself(tmp_path):
    class OwnModel(LlamaForCausalLM):
        pass

    torch.manual_seed(0)
    model = rf.make_reversible(OwnModel(config()), DYNAMICS)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"class 'OwnModel'.*revformers\.reversible_class\(OwnModel\)"):
        rf.from_pretrained(tmp_path)
    assert same(reversible_class(OwnModel).from_pretrained(tmp_path), model)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_a_copy_is_the_same_network_and_its_own(copied):
    model = smooth_llama()
    rf.convert(model, 1, TEXT)
    twin = copied(model)
    assert same(twin, model)
    assert rf.verify_gradients(twin, {"input_ids": TEXT[:2]}).bit_exact
    rf.set_activations(twin, "store")
    assert reversible_stack(model).activations == rf.Rebuild()
    rf.make_residual(twin)
    assert reversible_stack(model) is not None
    with pytest.raises(AssertionError):
        assert same(twin, model)


@pytest.mark.thorough
def test_a_pickle_is_read_by_another_process(tmp_path):
    model = with_head("LlamaForCausalLM")
    torch.save(model, tmp_path / "model.pt")
    torch.save(output(model), tmp_path / "output.pt")
    script = (
        f"import torch; model = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False); "
        f"ids = torch.arange(1, 13).view(2, 6); "
        f"assert torch.equal(model(ids)[0], torch.load({str(tmp_path / 'output.pt')!r}))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_models_from_one_configuration_do_not_share_what_they_are(tmp_path):
    first = with_head("LlamaForCausalLM")
    second = AutoModelForCausalLM.from_config(first.config)
    assert isinstance(second, ReversibleModel)
    rf.set_activations(second, "checkpoint")
    rf.make_reversible(second, rf.Midpoint())
    first.save_pretrained(tmp_path)
    loaded = reversible_stack(rf.from_pretrained(tmp_path))
    assert (loaded.dynamics, loaded.activations) == (DYNAMICS, rf.Rebuild())


def test_what_was_made_from_the_configuration_of_a_reversible_model_before_stays_ordinary(tmp_path):
    shared = config()
    ordinary, reversible = LlamaForCausalLM(shared), LlamaForCausalLM(shared)
    rf.make_reversible(reversible, DYNAMICS)
    ordinary.save_pretrained(tmp_path)
    assert reversible_stack(AutoModelForCausalLM.from_pretrained(tmp_path)) is None
    assert reversible_stack(AutoModelForCausalLM.from_config(shared)) is None
    modules = [module for module in reversible.modules() if "config" in vars(module)]
    assert len(modules) > 2
    assert {id(module.config) for module in modules} == {id(reversible.config)}


def test_two_reversible_models_from_one_configuration_do_not_change_each_other():
    shared = config()
    first, second = LlamaForCausalLM(shared), LlamaForCausalLM(shared)
    rf.make_reversible(first, DYNAMICS)
    rf.make_reversible(second, rf.Midpoint())
    assert AutoModelForCausalLM.from_config(first.config).model._reversible_stack.dynamics == DYNAMICS
    rf.make_residual(second)
    assert reversible_stack(AutoModelForCausalLM.from_config(first.config)) is not None


def test_an_ordinary_model_that_shares_a_configuration_with_a_reversible_one_is_not_saved(tmp_path):
    giver, model = LlamaForCausalLM(config()), with_head("LlamaForCausalLM")
    model.config = giver.config
    model.config.use_cache = False
    assert giver.config.use_cache is False
    with pytest.raises(ValueError, match="two models share a configuration"):
        giver.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    "change", [rf.make_residual, lambda model: rf.make_reversible(model, rf.Midpoint())], ids=["ordinary", "midpoint"]
)
def test_a_model_that_changes_leaves_the_configuration_it_was_made_from_alone(change):
    own = with_head("LlamaForCausalLM").config  # its model is gone
    change(AutoModelForCausalLM.from_config(own))
    assert reversible_stack(AutoModelForCausalLM.from_config(own)).dynamics == DYNAMICS


def test_a_shallow_copy_leaves_the_recurrence_to_the_model():
    model = with_head("LlamaForCausalLM")
    copy.copy(model)
    assert reversible_stack(model).owner() is model


def test_the_ordinary_network_is_of_its_ordinary_class_again():
    model = rf.make_residual(with_head("LlamaForCausalLM"))
    assert type(model) is LlamaForCausalLM
    assert type(model.model) is transformers.LlamaModel
    assert type(model.config) is LlamaConfig
    assert "revformers" not in model.config.to_json_string()
    assert type(copy.deepcopy(model)) is LlamaForCausalLM


@pytest.fixture
def saved(tmp_path):
    model = with_head("LlamaForCausalLM")
    model.save_pretrained(tmp_path / "reversible")
    rf.make_residual(copy.deepcopy(model)).save_pretrained(tmp_path / "ordinary")
    return model, tmp_path


def test_the_configuration_of_the_ordinary_network_finds_no_weights(saved):
    _, path = saved
    ordinary = AutoConfig.from_pretrained(path / "ordinary")
    for load in (AutoModelForCausalLM.from_pretrained, LlamaForCausalLM.from_pretrained):
        with pytest.raises(OSError, match=r"no file named model\.safetensors"):
            load(path / "reversible", config=ordinary)
    # The same call is right for the ordinary network.
    assert AutoModelForCausalLM.from_pretrained(path / "ordinary", config=ordinary)


@pytest.mark.thorough
def test_without_revformers_the_configuration_of_the_ordinary_network_finds_no_weights_either(saved):
    _, path = saved
    script = (
        f"from transformers import AutoConfig, AutoModelForCausalLM; "
        f"config = AutoConfig.from_pretrained({str(path / 'ordinary')!r}); "
        f"AutoModelForCausalLM.from_pretrained({str(path / 'reversible')!r}, config=config)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "no file named model.safetensors" in result.stderr


def test_a_given_configuration_counts_and_the_dynamics_stay(saved):
    model, path = saved
    given = AutoConfig.from_pretrained(path / "ordinary", attention_dropout=0.25)
    loaded = rf.from_pretrained(path / "reversible", config=given)
    assert loaded.config.attention_dropout == 0.25
    assert same(loaded, model)
    assert "revformers" not in given.to_json_string()


def test_a_configuration_may_be_given_as_a_path(saved):
    model, path = saved
    for place in (path / "ordinary", str(path / "reversible")):
        loaded = rf.from_pretrained(
            path / "reversible", config=place, attention_dropout=0.25, dtype=torch.bfloat16, attn_implementation="eager"
        )
        assert reversible_stack(loaded).dynamics == DYNAMICS
        assert loaded.config.attention_dropout == 0.25
        assert loaded.dtype == torch.bfloat16
        assert loaded.config._attn_implementation == "eager"
        assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.bfloat16())


def test_a_configuration_of_other_dynamics_is_refused(saved):
    model, path = saved
    other = rf.make_reversible(copy.deepcopy(model), rf.Midpoint())
    other.save_pretrained(path / "other")
    for given, load in (
        (other.config, rf.from_pretrained),
        (other.config, AutoModelForCausalLM.from_pretrained),
        (path / "other", rf.from_pretrained),
    ):
        with pytest.raises(ValueError, match=r"config= belongs to another reversible network .*they differ in"):
            load(path / "reversible", config=given)
    assert same(rf.from_pretrained(path / "reversible", config=model.config), model)


LOADERS = {"ours": rf.from_pretrained, "auto": AutoModelForCausalLM.from_pretrained}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_keywords_mean_what_they_mean_in_transformers(saved, load):
    _, path = saved
    for keywords in (
        {"attn_implementation": "eager"},
        {"attention_dropout": 0.3},
        {"dtype": torch.bfloat16, "device_map": {"": "cpu"}},
        {"use_cache": False, "attn_implementation": "sdpa"},
        {"subfolder": "reversible"},
    ):
        places = [path if "subfolder" in keywords else path / "reversible", path / "ordinary"]
        loaded, ordinary = (
            load(places[0], **keywords),
            LlamaForCausalLM.from_pretrained(
                places[1], **{name: value for name, value in keywords.items() if name != "subfolder"}
            ),
        )
        assert loaded.config._attn_implementation == ordinary.config._attn_implementation
        assert loaded.dtype == ordinary.dtype
        for name in ("attention_dropout", "use_cache"):
            assert getattr(loaded.config, name) == getattr(ordinary.config, name)
    _, info = load(path / "reversible", output_loading_info=True)
    assert not info["missing_keys"]


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize(
    "keywords",
    [{"attn_implementation": "flash_attention_2"}, {"no_such_argument": 1}],
    ids=lambda value: next(iter(value)),
)
def test_what_transformers_refuses_is_refused_as_by_transformers(saved, load, keywords):
    _, path = saved
    with pytest.raises(Exception) as ordinary:  # noqa: PT011
        LlamaForCausalLM.from_pretrained(path / "ordinary", **keywords)
    with pytest.raises(type(ordinary.value)) as ours:
        load(path / "reversible", **keywords)
    assert not isinstance(ours.value, ModelFilesError)


def test_weights_in_memory_are_loaded_without_a_path():
    model = with_head("LlamaForCausalLM")
    loaded = type(model).from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert same(loaded, model)


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_what_was_given_in_the_place_of_the_configuration_is_named(saved, load):
    path = saved[1] / "reversible"
    with pytest.raises(ModelFilesError, match="what was given in its place"):
        load(path, attention_bias=True)
    with pytest.raises(ModelFilesError, match="ignore_mismatched_sizes=True"):
        load(path, vocab_size=99)


@pytest.mark.parametrize("name", ["AutoModel", "pipeline", "NoSuchModel"])
def test_a_name_that_is_no_model_of_transformers_is_refused(name, tmp_path):
    model = with_head("LlamaForCausalLM")
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace("ReversibleLlamaForCausalLM", f"Reversible{name}"))
    with pytest.raises(ValueError, match="which is neither in transformers nor registered"):
        rf.from_pretrained(tmp_path)


def test_a_variant_is_saved_and_loaded_beside_the_other_weights(saved):
    model, path = saved
    half = copy.deepcopy(model).half()
    half.save_pretrained(path / "reversible", variant="fp16")
    assert rf.from_pretrained(path / "reversible", variant="fp16", dtype="auto").dtype == torch.float16


def test_weights_on_disk_are_for_inference(saved):
    model, path = saved
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{layer}": "disk" if layer % 2 else "cpu" for layer in range(4)}
    loaded = rf.from_pretrained(path / "reversible", device_map=places, offload_folder=path / "offload")
    assert any(parameter.is_meta for parameter in loaded.parameters())
    assert same(loaded, model)
    tokens = [network.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0) for network in (loaded, model)]
    assert torch.equal(*tokens)
    with pytest.raises(ValueError, match=r"cannot train layer 1, whose weights are not on the device of its input"):
        loaded.train()(input_ids=IDS, labels=IDS)
    loaded.save_pretrained(path / "again")
    assert same(rf.from_pretrained(path / "again"), model)
    with pytest.raises(ValueError, match="wrapped by another library after the model became reversible"):
        rf.make_residual(loaded)
