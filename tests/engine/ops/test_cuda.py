"""The Triton kernels against the plain operations: on a GPU, and without one through Triton's interpreter."""

import os
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revformers.dynamics.base import Coefficients
from revformers.engine.fixed_point import INT64, FixedPoint
from revformers.engine.ops import SWITCH, _fused_wanted, kernels_for
from revformers.engine.ops import cpu as plain
from revformers.engine.packing import GROUP, packed_size

COUNTS = [1, 7, 8, 9, 1000, GROUP - 3, GROUP + 13]


interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1, which Triton reads when it is imported"
)


@pytest.fixture(scope="module")
def fused():
    pytest.importorskip("triton")
    from revformers.engine.ops import cuda as fused

    return fused


def factors(largest_denominator):
    return st.builds(
        lambda numerator, denominator, sign: sign * Fraction(numerator, denominator),
        st.integers(1, 512),
        st.one_of(st.sampled_from([1, 2, 4, 16, 256]), st.integers(1, largest_denominator)),
        st.sampled_from([1, -1]),
    ).filter(lambda a: abs(a) >= Fraction(1, 256) and a.denominator <= 256)


coefficients_of_steps = st.builds(
    Coefficients,
    previous=factors(256),
    current=st.one_of(st.just(Fraction(0)), factors(256)),
    update=st.sampled_from([1.0, 0.25, 0.3, 2.0]),
)
formats = st.sampled_from([INT64, FixedPoint(torch.int32, 10)])
floating = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])


def assert_equal_to_the_bit(fused, device, count, coefficients, dtype, seed, fixed_point=INT64):
    generator = torch.Generator().manual_seed(seed)
    # The largest states whose step, with the coefficients above, stays within the integers.
    most = 2**52 if fixed_point == INT64 else 2**20
    previous, current = (
        torch.randint(-most, most, (count,), generator=generator).to(device, fixed_point.dtype) for _ in range(2)
    )
    # Every other value of a wider tensor: not contiguous.
    update = (torch.randn(count, 2, generator=generator) * 100).to(device, dtype)[:, 0]
    point = fixed_point.fraction_bits
    bits = coefficients.side_information_bits
    packed = [torch.full((packed_size(count, bits),), 77, dtype=torch.uint8, device=device) for _ in range(2)]
    moved = [previous.clone(), previous.clone()]
    for kernels, states, side_information in zip((plain, fused), moved, packed, strict=True):
        kernels.advance(states, current, coefficients, update, side_information if bits else None, point)
    assert torch.equal(*moved)
    assert torch.equal(*packed)
    for kind in (torch.float32, torch.float16, torch.float64, *([torch.bfloat16] if moved[0].is_cuda else [])):
        # The interpreter cuts bfloat16 off where a GPU rounds.
        assert torch.equal(fused.read(moved[0], kind, point), plain.read(moved[0], kind, point))
    possible = fused.retreat(moved[1], current, coefficients, update, packed[0] if bits else None, point)
    assert torch.equal(moved[1], previous)
    assert possible is None or possible.item()
    moved[0][0] += 1
    moved[1] = moved[0].clone()
    verdicts = [
        kernels.retreat(states, current, coefficients, update, packed[0] if bits else None, point)
        for kernels, states in zip((plain, fused), moved, strict=True)
    ]
    assert torch.equal(*moved)
    assert verdicts == [None, None] or torch.equal(*verdicts)


@interpreted
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@given(st.sampled_from(COUNTS[:4]), coefficients_of_steps, floating, st.integers(0, 2**31), formats)
@settings(max_examples=100, deadline=None)
def test_interpreted_kernels_equal_the_plain_operations(fused, count, coefficients, dtype, seed, fixed_point):
    assert_equal_to_the_bit(fused, "cpu", count, coefficients, dtype, seed, fixed_point)


@interpreted
def test_interpreted_kernels_cross_groups(fused):
    coefficients = Coefficients(previous=Fraction(-3, 200), current=Fraction(1, 2), update=0.3)
    assert_equal_to_the_bit(fused, "cpu", GROUP + 13, coefficients, torch.bfloat16, 0)


@pytest.mark.gpu
@given(st.sampled_from(COUNTS), coefficients_of_steps, floating, st.integers(0, 2**31), formats)
@settings(max_examples=300, deadline=None)
def test_compiled_kernels_equal_the_plain_operations(fused, count, coefficients, dtype, seed, fixed_point):
    assert_equal_to_the_bit(fused, "cuda", count, coefficients, dtype, seed, fixed_point)


@pytest.mark.gpu
def test_cuda_takes_the_fused_kernels_unless_they_are_switched_off(fused, monkeypatch):
    states = torch.zeros(1, dtype=torch.int64, device="cuda")
    monkeypatch.delenv(SWITCH, raising=False)
    _fused_wanted.cache_clear()
    assert kernels_for(states) is fused
    monkeypatch.setenv(SWITCH, "plain")
    _fused_wanted.cache_clear()
    assert kernels_for(states) is plain
    _fused_wanted.cache_clear()


def test_a_cpu_takes_the_plain_operations():
    assert kernels_for(torch.zeros(1, dtype=torch.int64)) is plain


def test_an_unknown_switch_is_refused(monkeypatch):
    monkeypatch.setenv(SWITCH, "fast")
    _fused_wanted.cache_clear()
    with pytest.raises(ValueError, match="can only be set to"):
        _fused_wanted()
    _fused_wanted.cache_clear()
