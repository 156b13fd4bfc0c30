import copy

import datasets
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from revformers.errors import UserError
from revformers.training.end_of_sequence import without_end_of_sequence

END = 0
TEXT = "a step"


@pytest.fixture
def tokenizer(shared):
    return AutoTokenizer.from_pretrained(shared / "model")


def with_tokens(tokenizer, template):
    """Return a copy that adds tokens to a text, as many tokenizers of pretrained models do."""
    changed = copy.deepcopy(tokenizer)
    changed.add_special_tokens({"additional_special_tokens": ["<a:1 b>"]})
    changed.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[("END", END), ("START", len(tokenizer))]
    )
    return changed


@pytest.mark.parametrize("template", ["$A END", "START $A END", "START START $A END"])
def test_only_the_last_token_is_left_out_and_only_for_a_while(tokenizer, template):
    changed = with_tokens(tokenizer, template)
    whole = changed(TEXT)["input_ids"]
    assert whole[-1] == END
    with without_end_of_sequence(changed):
        assert changed(TEXT)["input_ids"] == whole[:-1]
        assert changed("")["input_ids"] == changed(TEXT)["input_ids"][: template.count("START")]
    assert changed(TEXT)["input_ids"] == whole


@pytest.mark.parametrize("template", ["$A", "START $A", "$A START", "END $A"])
def test_other_tokens_are_kept(tokenizer, template):
    changed = with_tokens(tokenizer, template)
    whole = changed(TEXT)["input_ids"]
    with without_end_of_sequence(changed):
        assert changed(TEXT)["input_ids"] == whole


def test_a_tokenizer_that_cannot_be_told_is_refused():
    class Slow:
        eos_token_id = END

        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [5, 6, END] if add_special_tokens else [5, 6]}

    with pytest.raises(UserError, match=r"set model\.tokenizer to a fast one"), without_end_of_sequence(Slow()):
        pass


@pytest.mark.parametrize("template", ["$A", "$A END", "START $A END"])
def test_one_token_ends_a_completion(shared, tokenizer, tmp_path, template):
    trl = pytest.importorskip("trl")
    changed = with_tokens(tokenizer, template)
    data = datasets.Dataset.from_list([{"prompt": "count", "completion": " to 1"}, {"prompt": "", "completion": " 2"}])
    with without_end_of_sequence(changed):
        trainer = trl.SFTTrainer(
            AutoModelForCausalLM.from_pretrained(shared / "model"),
            trl.SFTConfig(str(tmp_path), use_cpu=True, report_to="none", bf16=False),
            train_dataset=data,
            processing_class=changed,
        )
    before = [len(tokenizer)] * template.count("START")
    for row, record in zip(trainer.train_dataset, data, strict=True):
        text = tokenizer(record["prompt"] + record["completion"])["input_ids"]
        assert row["input_ids"] == [*before, *text, END]
        prompt = before + tokenizer(record["prompt"])["input_ids"]
        assert row["labels"] == [-100] * len(prompt) + [*text, END][len(prompt) - len(before) :]
