import pytest
import torch
from torch.nn import functional

from revformers.planning.meta import autocast_without_meta, without_numbers


def heads(count, width=8, **options):
    return torch.empty(2, count, 6, width, device="meta", **options)


def test_questions_about_numbers_have_answers_inside_the_block_alone():
    number, flags = torch.empty((), device="meta"), torch.empty(5, dtype=torch.bool, device="meta")
    with without_numbers(chunks=3):
        assert number.item() == 0.0
        assert flags.all().item() is True
        assert torch.equal(number, number + 1)
        assert torch.empty(4, device="meta").to("cpu").tolist() == [0.0] * 4
        assert flags.nonzero().shape == (5, 1)
    with pytest.raises(RuntimeError, match="meta"):
        number.item()


@pytest.mark.parametrize("mask", [None, torch.bool, torch.float32])
def test_attention_keeps_what_the_fused_kernel_keeps(mask):
    """Which grows with the tokens, not with their square, and does not repeat heads that share keys."""
    saved = []
    query, key, value = heads(4, requires_grad=True), heads(2, requires_grad=True), heads(2, requires_grad=True)
    given = None if mask is None else torch.empty(2, 1, 6, 6, dtype=mask, device="meta")
    with (
        without_numbers(chunks=1),
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.shape) or tensor, lambda x: x),
    ):
        assert functional.scaled_dot_product_attention(query, key, value, given).shape == query.shape
    assert sorted(shape for shape in saved if given is None or shape != given.shape) == sorted(
        [query.shape, query.shape, key.shape, value.shape, (2, 4, 6)]
    )


def test_attention_without_a_fused_kernel_is_pytorchs_own():
    real = [torch.randn(1, 2, 3, 8) for _ in range(3)]
    expected = functional.scaled_dot_product_attention(*real)
    with without_numbers(chunks=1):
        assert torch.equal(functional.scaled_dot_product_attention(*real), expected)
        wider = functional.scaled_dot_product_attention(heads(2), heads(2), heads(2, width=12))
        assert wider.shape == (2, 2, 6, 12)


def test_autocast_may_be_asked_for_on_the_meta_device():
    autocast = torch.autocast
    with autocast_without_meta():
        with torch.autocast("meta", torch.bfloat16):
            pass
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.is_autocast_enabled("cpu")
    assert torch.autocast is autocast
