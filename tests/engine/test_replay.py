import contextlib

import pytest
import torch

from revformers.engine.replay import AutocastState, Draws, RandomState

CPU = torch.device("cpu")


def test_random_numbers_are_drawn_again_inside_the_block_and_go_on_after_it():
    state = RandomState.of(CPU)
    first, outer = torch.rand(3), torch.get_rng_state()
    with state.restored():
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), outer)
    assert not torch.equal(torch.rand(3), first)


def test_states_are_equal_until_a_number_is_drawn():
    state = RandomState.of(CPU)
    assert state.equals(RandomState.of(torch.device("meta")))
    torch.rand(1)
    assert not state.equals(RandomState.of(CPU))


def test_a_replay_draws_the_same_numbers_and_knows_whether_it_drew_others():
    before = RandomState.of(CPU)
    first = torch.rand(3)
    draws, outer = Draws(before, RandomState.of(CPU)), torch.get_rng_state()
    for number, repeated in ((3, True), (2, False), (4, False), (3, True)):
        with draws.replayed(CPU):
            assert torch.equal(torch.rand(number)[:2], first[:2])
        assert draws.were_repeated() == repeated
        assert torch.equal(torch.get_rng_state(), outer)
    with draws.replayed(CPU):
        torch.rand(1)
    with contextlib.suppress(KeyError), draws.replayed(CPU):
        raise KeyError
    assert draws.were_repeated(), "what the replay before it drew says nothing of one that was cut short"


@pytest.mark.gpu
def test_the_generator_of_a_gpu_is_restored_too():
    device = torch.device("cuda")
    state = RandomState.of(device)
    first = torch.rand(3, device=device)
    assert not state.equals(RandomState.of(device))
    with state.restored():
        assert torch.equal(torch.rand(3, device=device), first)
    assert not torch.equal(torch.rand(3, device=device), first)


@pytest.mark.parametrize(("enabled", "dtype"), [(True, torch.bfloat16), (True, torch.float16), (False, torch.bfloat16)])
@pytest.mark.parametrize("cache", [True, False])
def test_autocast_is_as_it_was_inside_the_block_alone(enabled, dtype, cache):
    one = torch.ones(2, 2)
    with torch.autocast("cpu", dtype, enabled, cache):
        state = AutocastState.of(CPU)
        expected = (one @ one).dtype
    assert expected == (dtype if enabled else torch.float32)
    with torch.autocast("cpu", torch.float16 if dtype == torch.bfloat16 else torch.bfloat16):
        outer = (one @ one).dtype
        with state.restored():
            assert (one @ one).dtype == expected
            assert torch.is_autocast_cache_enabled() == cache
        assert (one @ one).dtype == outer
        assert AutocastState.of(CPU) != state
