from dataclasses import replace

import pytest
import torch

from revformers.data.blocks import build_datasets
from revformers.errors import UserError
from revformers.training.model import build_model
from revformers.training.recipe import SampleSection
from revformers.training.sample import check_lengths, write_samples
from tests.training.tiny import tiny_recipe

SECTION = SampleSection(prompts=("the model", "a"), max_new_tokens=6)


@pytest.fixture
def pair(tmp_path):
    recipe = tiny_recipe(tmp_path)
    return build_model(recipe), build_datasets(recipe.data)[0]


def test_samples_begin_with_their_prompt_and_repeat_themselves(pair):
    model, tokenizer = pair
    state = torch.get_rng_state()
    first = write_samples(model, tokenizer, SECTION)
    assert torch.equal(state, torch.get_rng_state())
    assert [text.startswith(prompt) for text, prompt in zip(first, SECTION.prompts, strict=True)] == [True, True]
    assert write_samples(model, tokenizer, SECTION) == first
    assert write_samples(model, tokenizer, replace(SECTION, seed=1)) != first


def test_temperature_zero_takes_the_likeliest_token(pair):
    model, tokenizer = pair
    greedy = replace(SECTION, temperature=0.0)
    assert write_samples(model, tokenizer, greedy) == write_samples(model, tokenizer, replace(greedy, seed=1))


def test_samples_longer_than_the_model_reads_are_named(pair):
    _, tokenizer = pair
    check_lengths(SECTION, tokenizer, 48)
    check_lengths(SECTION, tokenizer, None)
    with pytest.raises(UserError, match=r"lower sample\.max_new_tokens"):
        check_lengths(replace(SECTION, max_new_tokens=48), tokenizer, 48)
