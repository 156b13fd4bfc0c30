import pytest
from transformers import LlamaForCausalLM

import revformers as rf
from tests.checkpoints.adapters import BASES, base
from tests.conversion.test_convert import TEXT, smooth_llama
from tests.test_reversible import llama
from tests.tiny_trainers import (
    logits,
    ordinary,
    tokenizer,
    what_it_is,
    with_adapter,
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    ordinary(folder / "ordinary")
    return folder


@pytest.fixture(scope="session")
def adapters(folder):
    """The directory of an adapter of every base, and what the adapted network answers."""
    made = {}
    for kind in BASES:
        model = with_adapter(base(kind, folder))
        directory = folder / f"adapter of {kind}"
        model.save_pretrained(directory)
        tokenizer().save_pretrained(directory)
        made[kind] = directory, logits(model), what_it_is(model)
    return made


@pytest.fixture(scope="session")
def ordinary_adapter(folder):
    model = with_adapter(LlamaForCausalLM.from_pretrained(folder / "ordinary"))
    model.save_pretrained(folder / "ordinary adapter")
    return folder / "ordinary adapter"


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """An ordinary model, a converted one with predictors, and both in shards."""
    folder = tmp_path_factory.mktemp("models")
    converted = smooth_llama()
    rf.convert(converted, 1, TEXT)
    for name, model in (("ordinary", llama()), ("reversible", converted)):
        model.save_pretrained(folder / name)
        model.save_pretrained(folder / f"{name}-shards", max_shard_size="40KB")
    return folder
