import json
import struct

import numpy
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.gguf.reader import GgufHeader

import revformers as rf
from revformers.checkpoints import gguf_file
from revformers.checkpoints.load import load_causal_lm, load_config, load_tokenizer
from revformers.errors import MissingPackageError, ModelFilesError
from tests.gguf_models import rounded, tiny_llama, tiny_tokenizer, write_gguf
from tests.test_reversible import llama

IDS = torch.arange(3, 63).view(2, 30)
LOADERS = [load_causal_lm, load_config, load_tokenizer]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.Q8_0.gguf", tiny_llama(), tiny_tokenizer())


@pytest.mark.parametrize("quantization", ["Q8_0", "Q4_1"])
def test_the_logits_are_those_of_the_weights_that_the_file_keeps(tmp_path, quantization):
    path = write_gguf(tmp_path / "model.gguf", tiny_llama(), tiny_tokenizer(), quantization)
    loaded = load_causal_lm(path, dtype=torch.float32).eval()
    expected = rounded(tiny_llama(), quantization)(IDS).logits
    torch.testing.assert_close(loaded(IDS).logits, expected, rtol=1e-5, atol=1e-6)
    assert (expected - tiny_llama()(IDS).logits).abs().max() > 1e-4
    narrow = load_causal_lm(path)
    assert {parameter.dtype for parameter in narrow.parameters()} == {torch.bfloat16}
    for name, weight in narrow.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name].bfloat16())


def test_a_file_that_is_not_quantised_keeps_its_type(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", tiny_llama(), tiny_tokenizer(), "F32")
    assert torch.equal(load_causal_lm(path)(IDS).logits, tiny_llama()(IDS).logits)


def test_the_model_is_an_ordinary_one_that_is_saved_as_such(file, tmp_path):
    model = load_causal_lm(file)
    assert model.name_or_path == model.config.name_or_path == str(file)
    model.save_pretrained(tmp_path)
    load_tokenizer(file).save_pretrained(tmp_path)
    assert not any("quant" in name or "gguf" in name for name in json.loads((tmp_path / "config.json").read_text()))
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    text = "line 12 of a text"
    tokenizer = tiny_tokenizer()
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert rf.verify_gradients(rf.make_reversible(again, rf.BlendedMidpoint("1/16")), {"input_ids": IDS}).bit_exact


def test_the_tokenizer_is_that_of_the_file_also_beside_another_one(tmp_path):
    tokenizer = tiny_tokenizer()
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), tokenizer)
    (tmp_path / "tokenizer.json").write_text('{"another": "one"}')
    loaded = load_tokenizer(path)
    text = "line 12 of  a text, twice 24\n"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    first, second = tokenizer.convert_ids_to_tokens([0, 1])
    assert (loaded.bos_token, loaded.eos_token, loaded.unk_token, loaded.pad_token) == (first, second, None, None)
    assert loaded.name_or_path == str(path)
    assert loaded.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "user: hello\n"


def test_digits_are_split_as_the_file_says(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), tiny_tokenizer(), pre="smollm")
    assert "|".join(load_tokenizer(path).tokenize("a  12")) == "a|Ġ|Ġ|1|2"
    split = load_tokenizer(path).backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")
    assert [part for part, _ in split] == ["a", "ĠĠ", "1", "2"]


def test_an_unknown_split_is_not_passed_over_in_silence(tmp_path):
    pytest.importorskip("transformers", minversion="5.24")
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), tiny_tokenizer(), pre="of next year")
    with pytest.warns(UserWarning, match="splits text in the way 'of next year'"):
        load_tokenizer(path)


def test_the_configuration_needs_no_weights(file, tmp_path):
    """The file ends where the weights would begin, which only the check of the whole file notices."""
    header = GgufHeader.from_file(str(file))
    assert load_config(file).num_hidden_layers == 2
    assert load_config(file).vocab_size == 300
    start = tmp_path / "start.gguf"
    start.write_bytes(file.read_bytes()[: header.data_start])
    with pytest.raises(ModelFilesError, match="is incomplete"):
        load_config(start)


def overwrite(path, position, data):
    content = bytearray(path.read_bytes())
    content[position : position + len(data)] = data
    path.write_bytes(content)


DAMAGES = {
    "cut in the weights": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is incomplete"),
    "cut in the head": (lambda path: path.write_bytes(path.read_bytes()[:900]), "No model can be loaded from"),
    "empty": (lambda path: path.write_bytes(b""), "No model can be loaded from"),
    "another format": (lambda path: overwrite(path, 0, b"PK"), "not a GGUF file"),
    "another version": (lambda path: overwrite(path, 4, struct.pack("<I", 9)), "No model can be loaded from"),
    "no such length": (lambda path: overwrite(path, 24, struct.pack("<Q", 2**40)), "No model can be loaded from"),
}


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_named_in_one_sentence(file, tmp_path, damage, load):
    path = tmp_path / "damaged.gguf"
    path.write_bytes(file.read_bytes())
    destroy, message = DAMAGES[damage]
    destroy(path)
    with pytest.raises(ModelFilesError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_are_missing_are_refused(tmp_path):
    class Without(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.config = model, model.config

        def state_dict(self):
            return {name: weight for name, weight in self.model.state_dict().items() if "layers.1.mlp.up" not in name}

    path = write_gguf(tmp_path / "tiny.gguf", Without(tiny_llama()), tiny_tokenizer())
    with pytest.raises(ModelFilesError, match=r"do not have model\.layers\.1\.mlp\.up_proj\.weight"):
        load_causal_lm(path)


@pytest.mark.parametrize(
    "scaling",
    [
        {"tensors": [("rope_freqs.weight", numpy.ones(8, dtype=numpy.float32))]},
        {"metadata": [("llama.rope.scaling.type", "yarn")]},
    ],
)
def test_positions_that_transformers_would_leave_unscaled_are_refused(tmp_path, scaling):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), tiny_tokenizer(), **scaling)
    with pytest.raises(ModelFilesError, match="scales its rotary positions"):
        load_causal_lm(path)


def test_other_models_in_the_directory_change_nothing(tmp_path):
    llama(layers=4).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.1, "eos_token_id": 7}')
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), tiny_tokenizer())
    loaded = load_causal_lm(path, dtype=torch.float32).eval()
    torch.testing.assert_close(loaded(IDS).logits, rounded(tiny_llama())(IDS).logits, rtol=1e-5, atol=1e-6)
    assert loaded.generation_config.eos_token_id == 1
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelFilesError, match="lies an adapter"):
        load_causal_lm(path)


@pytest.mark.parametrize("load", LOADERS)
def test_a_missing_package_or_file_is_one_sentence(file, tmp_path, monkeypatch, load):
    with pytest.raises(FileNotFoundError, match=r"There is no file '.*nothing\.gguf'"):
        load(tmp_path / "nothing.gguf")
    monkeypatch.setattr(gguf_file, "is_gguf_available", lambda: False)
    with pytest.raises(MissingPackageError, match=r'pip install "revformers\[gguf\]"'):
        load(file)


def test_dequantised_weights_are_not_quantised_anew(file):
    with pytest.raises(ValueError, match="cannot be loaded into another quantisation"):
        load_causal_lm(file, quantization_config={"load_in_4bit": True})


def test_an_adapter_finds_its_base_in_the_file(file, tmp_path):
    model = rf.make_reversible(load_causal_lm(file), rf.BlendedMidpoint("1/16"))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).eval()
    adapted.save_pretrained(tmp_path)
    loaded = rf.load_adapter(tmp_path).eval()
    assert torch.equal(loaded(IDS).logits, adapted(IDS).logits)
