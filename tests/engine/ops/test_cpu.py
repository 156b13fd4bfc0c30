from fractions import Fraction

import pytest
import torch

from revformers.dynamics.base import Coefficients
from revformers.engine.fixed_point import read_into
from revformers.engine.ops import cpu as plain
from revformers.engine.packing import GROUP, packed_size


@pytest.mark.parametrize("blend", [Fraction(1), Fraction(1, 2), Fraction(-3, 128), Fraction(1, 3)], ids=str)
def test_a_step_over_several_blocks_is_the_step_of_each_element(blend):
    """The blocks of a large state against pieces that are cut elsewhere."""
    count = GROUP * torch.get_num_threads() + 2 * GROUP + 11
    previous, current = (torch.randint(-(2**52), 2**52, (count,)) for _ in range(2))
    update = torch.randn(count)
    coefficients = Coefficients(previous=blend, current=1 - blend, update=0.3)
    bits = coefficients.side_information_bits
    side_information = torch.empty(packed_size(count, bits), dtype=torch.uint8) if bits else None
    moved = previous.clone()
    plain.advance(moved, current, coefficients, update, side_information, 30)
    for start in range(0, count, 50_000):
        piece = previous[start : start + 50_000].clone()
        plain.advance(piece, current[start : start + 50_000], coefficients, update[start : start + 50_000], None, 30)
        assert torch.equal(moved[start : start + 50_000], piece)
    values = torch.empty(count, dtype=torch.bfloat16)
    read_into(moved, values, 30)
    assert torch.equal(plain.read(moved, torch.bfloat16, 30), values)
    plain.retreat(moved, current, coefficients, update, side_information, 30)
    assert torch.equal(moved, previous)


def test_the_update_may_lie_in_memory_in_another_order():
    states, update = torch.randint(-(2**40), 2**40, (3, 4, 5)), torch.randn(5, 4, 3).permute(2, 1, 0)
    coefficients = Coefficients(previous=Fraction(1), current=Fraction(0), update=1.0)
    results = []
    for layout in (update, update.contiguous()):
        results.append(states.clone())
        plain.advance(results[-1], states, coefficients, layout, None, 30)
    assert torch.equal(*results)


@pytest.mark.parametrize(("a", "b"), [(0, 1), (-1, 2), (1, 0)])
def test_whole_factors_multiply_exactly(a, b):
    """Among them those of the ordinary network, which forgets the previous state."""
    previous, current = (torch.randint(-(2**52), 2**52, (7,)) for _ in range(2))
    expected = a * previous + b * current + 2**29
    plain.advance(previous, current, Coefficients(Fraction(a), Fraction(b), 0.5), torch.ones(7), None, 30)
    assert torch.equal(previous, expected)
