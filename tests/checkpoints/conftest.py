import pytest
from transformers import LlamaForCausalLM

from tests.checkpoints.adapters import BASES, base
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
