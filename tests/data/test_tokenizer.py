from types import SimpleNamespace

import pytest
from tokenizers import processors
from transformers import AutoTokenizer, LlamaConfig, LlavaConfig, PreTrainedTokenizerFast

from revformers.data import tokenizer as module
from revformers.data.tokenizer import (
    END_OF_TEXT,
    END_OF_TEXT_ID,
    beginning_of_text,
    check_vocabulary,
    load_tokenizer,
    train_tokenizer,
)
from revformers.errors import UserError

TEXT = ["def f(x):\n    return x\n" * 20, "", "class A:\n        pass\n" * 20]


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
    with pytest.raises(UserError, match="No tokenizer can be loaded from"):
        load_tokenizer(tmp_path)
    without_end = PreTrainedTokenizerFast(tokenizer_object=train_tokenizer(TEXT, 280).backend_tokenizer)
    monkeypatch.setattr(module.pretrained, "load_tokenizer", lambda name: without_end)
    with pytest.raises(UserError, match="no end-of-sequence token"):
        load_tokenizer("somewhere")


@pytest.mark.parametrize("nested", [False, True])
def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(nested):
    """Also than the language model inside a vision-language model."""
    tokenizer = train_tokenizer(TEXT, 280)
    for size in (280, 279):
        config = LlamaConfig(vocab_size=size)
        model = SimpleNamespace(config=LlavaConfig(text_config=config) if nested else config)
        if size == 280:
            check_vocabulary(model, tokenizer, "raise it")
        else:
            with pytest.raises(UserError, match=r"has 280 tokens, but the model's vocab_size is 279; raise it\."):
                check_vocabulary(model, tokenizer, "raise it")


def beginning_with(token, ending):
    """A tokenizer that adds `token` before a text and `ending` after it."""
    tokenizer = train_tokenizer(TEXT, 280)
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in (token, ending) if name]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A {ending}".strip(), special_tokens=ids
    )
    return tokenizer


@pytest.mark.parametrize(
    ("token", "ending", "added"), [("<s>", "", "<s>"), ("<s>", "</s>", "<s>"), ("", "</s>", ""), ("", "", "")]
)
def test_what_begins_a_text_is_what_the_tokenizer_adds(tmp_path, token, ending, added):
    tokenizer = beginning_with(token, ending)
    expected = [tokenizer.convert_tokens_to_ids(added)] if added else []
    assert beginning_of_text(tokenizer, "auto") == expected
    tokenizer.save_pretrained(tmp_path)
    assert beginning_of_text(load_tokenizer(tmp_path), "auto") == expected
    assert beginning_of_text(tokenizer, "always") == [tokenizer.bos_token_id]
    assert beginning_of_text(tokenizer, "never") == []


@pytest.mark.parametrize("bare", [[], [7]])
def test_a_tokenizer_that_does_not_show_what_it_adds_is_refused(bare):
    """As one that writes a space before a text only where no token stands there."""
    tokenizer = train_tokenizer(TEXT, 280)
    tokenizer.bos_token = END_OF_TEXT

    class Other(PreTrainedTokenizerFast):
        def __call__(self, text, add_special_tokens=True, **options):
            return {"input_ids": [0, 8] if add_special_tokens else bare}

    other = Other(tokenizer_object=tokenizer.backend_tokenizer, bos_token=END_OF_TEXT)
    with pytest.raises(UserError, match="those before a text are unknown; set add_bos_token to always or never"):
        beginning_of_text(other, "auto")
    assert beginning_of_text(other, "always") == [0]
    assert beginning_of_text(other, "never") == []


def test_a_tokenizer_trained_here_adds_nothing_and_one_without_the_token_cannot():
    tokenizer = train_tokenizer(TEXT, 280)
    assert beginning_of_text(tokenizer, "auto") == []
    tokenizer.bos_token = None
    with pytest.raises(UserError, match="no beginning-of-sequence token; set add_bos_token to never or auto"):
        beginning_of_text(tokenizer, "always")
