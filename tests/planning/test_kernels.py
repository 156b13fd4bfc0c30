import pytest
import torch

from revformers import BlendedMidpoint, Midpoint
from revformers.engine import ops
from revformers.engine.packing import GROUP, packed_size
from revformers.planning.kernels import alone, described, first_block
from revformers.planning.meter import StorageCounter
from revformers.planning.work import work_of


def arguments(elements, dynamics, device="meta"):
    coefficients = dynamics.steps(3)[1]
    bits = coefficients.side_information_bits
    previous, current = (torch.zeros(elements, dtype=torch.int64, device=device) for _ in range(2))
    kept = torch.zeros(packed_size(elements, bits), dtype=torch.uint8, device=device) if bits else None
    return previous, current, coefficients, torch.zeros(elements, device=device), kept, 30


def taken(step, call):
    """The bytes that a step makes beyond its arguments."""
    tensors = [value for value in step if isinstance(value, torch.Tensor)]
    counter = StorageCounter(tensors[0].device)
    counter.assign(tensors, "other")
    with counter:
        call(*step)
    return counter.peak.total - sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dynamics", [Midpoint(), BlendedMidpoint("1/4")])
def test_what_a_step_takes_meanwhile_is_what_its_kernel_makes(dynamics, device):
    step = arguments(5000, dynamics, device)
    assert taken(step, ops.advance) == taken(step, ops.cpu.advance) > 8 * 5000


@pytest.mark.parametrize(("dynamics", "bits"), [(Midpoint(), 0), (BlendedMidpoint("1/4"), 2)])
def test_a_fused_kernel_reads_its_arguments_and_writes_its_results(dynamics, bits):
    step = arguments(5000, dynamics)
    fused, plain = (
        work_of(lambda advance=advance: advance(*step)).forward.time(1.0) for advance in (ops.advance, ops.cpu.advance)
    )
    assert fused == 5000 * (3 * 8 + 4 + bits / 8) < plain
    assert work_of(lambda: ops.read(step[0], torch.bfloat16, 30)).forward.time(1.0) == 5000 * (8 + 2)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_large_step_takes_temporaries_for_one_block(bits):
    sizes = GROUP // 2, GROUP, 5 * GROUP + 3
    half, whole, large = (taken(arguments(size, BlendedMidpoint(f"1/{2**bits}")), ops.advance) for size in sizes)
    assert half < whole == large


def test_one_block_has_all_that_a_block_needs():
    numbers = 1, 4, 3, 4, 0.5
    previous, current, _, update, kept, point = arguments(3 * GROUP, BlendedMidpoint("1/4"))
    block = first_block(described((previous, current, update, *numbers, point, kept)))
    assert [value[0].numel() for value in block if isinstance(value, tuple)] == [*[GROUP] * 3, packed_size(GROUP, 2)]
    alone(ops.ADVANCE, block)()
