import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from revformers.data import tokenizer as module
from revformers.data.tokenizer import END_OF_TEXT, END_OF_TEXT_ID, load_tokenizer, train_tokenizer
from revformers.errors import UserError

TEXT = ["def f(x):\n    return x\n" * 20, None, "", "class A:\n        pass\n" * 20]


def test_every_text_comes_back(tmp_path):
    tokenizer = train_tokenizer(TEXT, 280)
    text = "def g():\n\treturn 'é', \"日本\"  # \x00 🙂\r\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) == 280
    assert tokenizer.convert_tokens_to_ids(END_OF_TEXT) == tokenizer.eos_token_id == END_OF_TEXT_ID
    assert len(tokenizer("def")["input_ids"]) == 1  # learned


def test_training_is_deterministic_and_saving_changes_nothing(tmp_path):
    first, second = train_tokenizer(TEXT, 290), train_tokenizer(TEXT, 290)
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    first.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).backend_tokenizer.to_str() == first.backend_tokenizer.to_str()


def test_a_tokenizer_beside_a_model_is_loaded_as_itself(tmp_path):
    tokenizer = train_tokenizer(TEXT, 280)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    text = "def f(x):\n    return x\n"
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_what_cannot_be_used_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="There is no tokenizer"):
        load_tokenizer(tmp_path)
    without_end = PreTrainedTokenizerFast(tokenizer_object=train_tokenizer(TEXT, 280).backend_tokenizer)
    monkeypatch.setattr(module.pretrained, "load_tokenizer", lambda name: without_end)
    with pytest.raises(UserError, match="no end-of-sequence token"):
        load_tokenizer("somewhere")
