import pytest
import torch
from torch.nn import functional

from revformers.planning.meta import without_numbers
from revformers.planning.work import work_of


def test_a_product_is_bound_by_operations_or_by_bytes():
    first, second = torch.empty(30, 20, device="meta"), torch.empty(20, 10, device="meta")
    work = work_of(lambda: first @ second)
    operations, moved = 2 * 30 * 20 * 10, 4 * (30 * 20 + 20 * 10 + 30 * 10)
    assert work.operations == operations
    assert work.forward.time(1.0) == operations
    assert work.forward.time(100.0) == 100 * moved


def test_views_are_free_and_what_is_written_in_place_is_not():
    tensor = torch.empty(100, device="meta")
    assert work_of(lambda: tensor.view(10, 10).t()).forward.time(1.0) == 0
    assert work_of(lambda: tensor.add_(1)).forward.time(1.0) == 2 * 400
    assert work_of(lambda: tensor[:1].expand(100).clone()).forward.time(1.0) == 400 + 400


@pytest.mark.parametrize(("causal", "share"), [(True, 2), (False, 1)])
def test_attention_counts_the_heads_of_the_queries_and_what_a_token_sees(causal, share):
    query, key = (torch.empty(1, heads, 32, 16, device="meta", requires_grad=True) for heads in (8, 2))

    def step():
        functional.scaled_dot_product_attention(query, key, key, is_causal=causal, enable_gqa=True).sum().backward()

    with without_numbers(chunks=1):
        work = work_of(step)
    product = 2 * 8 * 32 * 32 * 16
    assert work.forward.operations == 2 * product // share
    assert work.backward.operations == 5 * product // share
    assert work.operations == work.forward.operations + work.backward.operations
