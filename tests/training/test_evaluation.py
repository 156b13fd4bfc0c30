import io
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from rich.console import Console
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, default_data_collator

import revformers as rf
from revformers.head.losses import MASKED
from revformers.training import finetune as finetune_module
from revformers.training.evaluation import TextTrainer, TokenMeanEvaluation
from tests.training.tiny_finetune import COLUMNS, INSTRUCTIONS, tiny_finetune_recipe, write_records

RECORDS = 11
SIZES = (1, 4, 7, 16)


def model_and_data(head, records=RECORDS):
    """A reversible model, and sequences of which the first covers one token, the second two, and so on."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    model = rf.make_reversible(LlamaForCausalLM(config), rf.Midpoint())
    if head == "chunked":
        rf.set_head_loss(model, rf.HeadLoss())
    ids = torch.randint(64, (records, 16))
    labels = ids.clone()
    for covered, row in enumerate(labels, start=1):
        row[: len(row) - covered] = MASKED
    return model, Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


def loss_at(size, model, data, directory, kind=TextTrainer):
    arguments = TrainingArguments(
        str(directory), per_device_eval_batch_size=size, use_cpu=True, report_to="none", disable_tqdm=True
    )
    trainer = kind(model, arguments, data_collator=default_data_collator, eval_dataset=data)
    return trainer.evaluate()["eval_loss"]


def loss_by_record(model, records):
    """The mean over tokens, from the logits of one record at a time."""
    total = tokens = 0
    with torch.no_grad():
        for record in records:
            ids, labels = (torch.tensor(record[name]) for name in ("input_ids", "labels"))
            logits = model.eval()(input_ids=ids[None]).logits[0, :-1]
            total += cross_entropy(logits, labels[1:], ignore_index=MASKED, reduction="sum").item()
            tokens += (labels[1:] != MASKED).sum().item()
    return total / tokens


@pytest.mark.parametrize("head", ["chunked", "own"])
def test_the_loss_is_that_of_the_tokens_for_every_batch_size(head, tmp_path):
    model, data = model_and_data(head)
    expected = loss_by_record(model, data)
    assert [loss_at(size, model, data, tmp_path) for size in SIZES] == pytest.approx([expected] * len(SIZES), rel=1e-6)
    assert loss_at(4, model, data, tmp_path, Trainer) != pytest.approx(expected, rel=1e-3)


def test_a_batch_without_labels_counts_nothing(tmp_path):
    model, data = model_and_data("own")
    masked = data.map(
        lambda record, index: {"labels": [MASKED] * 16 if index < 3 else record["labels"]}, with_indices=True
    )
    expected = loss_by_record(model, masked)
    assert loss_at(1, model, masked, tmp_path) == pytest.approx(expected, rel=1e-6)


class Reported:
    """A base class in the place of the Trainer, whose losses are given."""

    def __init__(self, batches):
        self._given = iter(batches)
        state = SimpleNamespace(end_of_dataloader=False, remainder=-1)
        self.accelerator = SimpleNamespace(gradient_state=state, gather=lambda tensors: tensors)

    def prediction_step(self, model, inputs):
        return next(self._given), None, None

    def evaluation_loop(self, lengths, metric_key_prefix):
        for length in lengths:
            self.prediction_step(None, {"labels": torch.zeros(1, 1).expand(1, length + 1)})
        return SimpleNamespace(metrics={})


@pytest.mark.parametrize(
    ("dtype", "lengths"),
    [(torch.bfloat16, (257, 255)), (torch.float16, (70_000, 30_000)), (torch.float32, (2**24 + 1, 2**24 - 1))],
)
def test_tokens_are_counted_exactly_whatever_the_type_of_the_loss(dtype, lengths):
    """257 is 256 in bfloat16, 70000 is infinite in float16, and 2**24 + 1 is 2**24 in float32."""
    trainer = type("Counted", (TokenMeanEvaluation, Reported), {})(
        [torch.tensor(one, dtype=dtype) for one in (1.0, 0.0)]
    )
    metrics = trainer.evaluation_loop(lengths, metric_key_prefix="eval").metrics
    assert metrics["eval_loss"] == lengths[0] / sum(lengths)


def test_prompts_of_different_lengths_weigh_as_many_tokens_as_they_have(tmp_path, monkeypatch):
    monkeypatch.setattr(finetune_module, "train_to_end", lambda trainer, *_: trainer)
    source = write_records(tmp_path / "records.json", INSTRUCTIONS)
    options = {"data.source": str(source), "data.columns": COLUMNS, "data.validation_documents": RECORDS}
    recipe = tiny_finetune_recipe(tmp_path, {**options, "data.validation_blocks": None})
    trainer = finetune_module.finetune(recipe, console=Console(file=io.StringIO()))
    losses = []
    for size in SIZES:
        trainer.args.per_device_eval_batch_size = size
        losses.append(trainer.evaluate()["eval_loss"])
    expected = loss_by_record(trainer.model, trainer.eval_dataset)
    assert losses == pytest.approx([expected] * len(SIZES), rel=1e-5)
