import pytest
import torch

from revformers.cli.model_input import move, random_tokens, sequence_length, set_seed
from revformers.errors import UserError
from tests.tiny_models import tiny


def test_the_length_is_the_default_or_what_the_model_reads_at_most():
    model = tiny("llama", max_position_embeddings=40)
    assert sequence_length(model, None, 32, least=2) == 32
    assert sequence_length(model, None, 64, least=2) == 40
    assert sequence_length(model, 2, 32, least=2) == 2
    with pytest.raises(UserError, match="at least 2 tokens"):
        sequence_length(model, 1, 32, least=2)
    with pytest.raises(UserError, match="at most 40 tokens"):
        sequence_length(model, 41, 32, least=2)


def test_tokens_are_of_the_vocabulary_and_follow_the_seed():
    model = tiny("llama")
    drawn = []
    for seed in (0, 0, 1):
        set_seed(seed)
        drawn.append(random_tokens(model, 3, 50))
    assert drawn[0].shape == (3, 50)
    assert 0 <= drawn[0].min() < drawn[0].max() < model.config.vocab_size
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_a_generator_would_refuse(seed):
    with pytest.raises(UserError, match="--seed must be a whole number from 0"):
        set_seed(seed)


def test_a_device_that_does_not_exist():
    with pytest.raises(UserError, match="cannot use the device 'nonsense'"):
        move(tiny("llama"), "nonsense")


def test_a_device_without_values():
    with pytest.raises(UserError, match="'meta' have no values"):
        move(tiny("llama"), "meta")
