import io
import os

import pytest
import torch
from datasets import Dataset
from rich.console import Console
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, default_data_collator

import revformers as rf
from revformers.training import finetune as finetune_module
from revformers.training.evaluation import MASKED, TextTrainer
from tests.training.tiny_finetune import COLUMNS, INSTRUCTIONS, tiny_finetune_recipe, write_records

RECORDS = 11
SIZES = (1, 4, 7, 16)


def model_and_data(head):
    """A reversible model, and sequences of which the first covers one token, the second two, and so on."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    model = rf.make_reversible(LlamaForCausalLM(config), rf.Midpoint())
    if head == "chunked":
        rf.set_head_loss(model, rf.HeadLoss())
    ids = torch.randint(64, (RECORDS, 16))
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


def test_prompts_of_different_lengths_weigh_as_many_tokens_as_they_have(tmp_path, monkeypatch):
    monkeypatch.setattr(finetune_module, "train", lambda trainer, *_: trainer)
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


def rank_of_two(rank, directory, port):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    model, data = model_and_data("chunked")
    losses = [loss_at(size, model, data, directory) for size in SIZES]
    torch.save([losses, loss_at(4, model, data, directory, Trainer)], directory / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.thorough
def test_two_processes_find_the_loss_of_one(tmp_path):
    torch.multiprocessing.spawn(rank_of_two, (tmp_path, 29571 + os.getpid() % 400), nprocs=2)
    expected = loss_by_record(*model_and_data("chunked"))
    for rank in range(2):
        losses, of_the_trainer = torch.load(tmp_path / f"{rank}.pt")
        assert losses == pytest.approx([expected] * len(SIZES), rel=1e-6)
        assert of_the_trainer != pytest.approx(expected, rel=1e-3)
