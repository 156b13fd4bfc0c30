"""A small reversible network, come about in every way, a tokenizer of words, and data for every trainer."""

import copy
import functools

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast, TrainingArguments

import revformers as rf
from revformers.models.discovery import unwrap
from revformers.models.parts import reversible_stack, update_predictors
from tests.conversion.test_convert import TEXT, smooth_llama

IDS = TEXT[:2]
WORDS = [f"word{number}" for number in range(58)]
DYNAMICS = rf.BlendedMidpoint(0.25)
LAYERS = r".*(q_proj|down_proj|maps\.\d+)"
WAYS = ("memory", "unnamed", "loaded", "auto", "path", "converted", "trained")
ADAPTERS = ("full", "peft_config", "peft_model")


small = functools.partial(smooth_llama, layers=3)


def tokenizer():
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=32
    )


def sentences(count, length=6):
    """Distinct texts of `length` words."""
    return [" ".join(WORDS[(7 * row + 3 * place) % len(WORDS)] for place in range(length)) for row in range(count)]


def dataset(task, rows=8):
    prompts, good, bad = (sentences(rows, length) for length in (3, 6, 5))
    answers = {"chosen": [f" {text}" for text in good], "rejected": [f" {text}" for text in bad]}
    columns = {
        "sft": {"text": good},
        "dpo": {"prompt": prompts} | answers,
        "kto": {"prompt": prompts, "completion": answers["chosen"], "label": [row % 2 == 0 for row in range(rows)]},
        "grpo": {"prompt": prompts},
        "rloo": {"prompt": prompts},
        "reward": {"chosen": good, "rejected": bad},
    }
    return Dataset.from_dict(columns[task])


def ordinary(directory):
    """The directory of the ordinary network, with a tokenizer."""
    if not directory.is_dir():
        small().save_pretrained(directory)
        tokenizer().save_pretrained(directory)
    return directory


def saved(directory, converted=False):
    """The directory of a saved reversible network, with a tokenizer."""
    if not directory.is_dir():
        make("converted" if converted else "memory", directory.parent).save_pretrained(directory)
        tokenizer().save_pretrained(directory)
    return directory


def make(way, folder):
    """A reversible network, or its path, that came about in one of `WAYS`."""
    if way == "unnamed":
        return rf.make_reversible(small(), DYNAMICS)
    if way == "loaded":
        return rf.from_pretrained(saved(folder / "saved"))
    if way == "auto":
        return AutoModelForCausalLM.from_pretrained(saved(folder / "saved"))
    if way == "path":
        return str(saved(folder / "saved"))
    if way == "converted":
        return converted(folder)
    model = LlamaForCausalLM.from_pretrained(ordinary(folder / "ordinary"))
    rf.make_reversible(model, DYNAMICS)
    if way == "trained":
        train_two_steps(model, folder)
    return model


def converted(folder, first=0):
    """The ordinary network of `folder`, converted in memory; another `first` line of text gives other predictors."""
    return copy.deepcopy(_converted(ordinary(folder / "ordinary"), first))


@functools.cache
def _converted(path, first):
    model = LlamaForCausalLM.from_pretrained(path)
    rf.convert(model, 0.5, TEXT[first:], allocation="uniform")
    return model


def arguments(folder, kind=TrainingArguments, **options):
    """Arguments of a training without reports or checkpoints, of one step unless `options` say otherwise."""
    quiet = {"report_to": "none", "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "use_cpu": True}
    shared = {"per_device_train_batch_size": 2, "max_steps": 1, "learning_rate": 1e-2, "bf16": False}
    return kind(output_dir=str(folder / "run"), **quiet | shared | options)


def token_rows(rows=8):
    """Rows for transformers' own Trainer."""
    ids = torch.randint(61, (rows, 12), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in ids]


def train_two_steps(model, folder):
    from trl import SFTConfig, SFTTrainer

    SFTTrainer(
        model,
        arguments(folder, SFTConfig, max_steps=2),
        train_dataset=dataset("sft"),
        processing_class=tokenizer(),
    ).train()


def lora(**options):
    """LoRA on some linear layers, the update predictors' weights among them where there are any."""
    return LoraConfig(**{"r": 2, "target_modules": LAYERS, "task_type": "CAUSAL_LM"} | options)


def with_adapter(model, **options):
    """A PEFT model around `model` whose adapter changes its answers."""
    torch.manual_seed(0)
    return get_peft_model(model, lora(init_lora_weights=False, **options))


def logits(model):
    """The answers of the model itself, no copy of it, which is left in its mode."""
    training = model.training
    with torch.no_grad():
        result = model.eval()(input_ids=IDS).logits
    model.train(training)
    return result


def what_it_is(model):
    """What tells one network from another besides its weights; None of an ordinary one."""
    stack = reversible_stack(model)
    return stack and (stack.dynamics, stack.predictor_form, len(update_predictors(model)))


def class_name(model):
    return type(unwrap(model)).__name__
