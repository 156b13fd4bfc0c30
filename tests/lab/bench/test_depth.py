import pytest

from lab.bench.arm_names import arm_name
from lab.bench.depth import DepthPoint, as_rows, growths, mean_side_information_bits
from lab.bench.memory import PeakMemory
from lab.bench.workload import MeasuredWorkload, llama_config
from revformers import BlendedMidpoint, Hamiltonian, Midpoint
from revformers.activations import Checkpoint, Rebuild
from revformers.setup import Setup

# One layer's input: 2 x 8 x 32 elements of 4 bytes, 2048 bytes.
WORKLOAD = MeasuredWorkload(llama_config(2, 32, 16, 8), batch_size=2, sequence_length=8)
CHECKPOINT = Setup(Midpoint(), Checkpoint())


def point(arm, layers, peak):
    return DepthPoint(arm_name(arm), layers, PeakMemory(peak, 0, None))


def test_growth_of_known_peaks():
    points = [point(CHECKPOINT, layers, 10_000 + 2048 * layers) for layers in (16, 4, 8)]
    first, second = growths(points, WORKLOAD, {"checkpoint": CHECKPOINT})
    assert (first.from_layers, first.to_layers, second.from_layers, second.to_layers) == (4, 8, 8, 16)
    assert first.bytes_per_layer == second.bytes_per_layer == 2048
    assert first.share_of_layer_input == first.excess_share == 1


def test_side_information_is_told_apart():
    # 1 of 32 bits is 3.125% of a float32 input; the peak grows by that and by 1% more.
    arm = Setup(BlendedMidpoint("1/2"), Rebuild())
    (row,) = growths([point(arm, 4, 0), point(arm, 14, 10 * (64 + 20.48))], WORKLOAD, {"rebuild": arm})
    assert row.side_information_share == pytest.approx(1 / 32)
    assert row.excess_share == pytest.approx(0.01)
    assert as_rows([], [row])["growth"][0]["excess_share"] == row.excess_share


def test_side_information_counts_every_step_and_the_layers_asked_for():
    assert mean_side_information_bits(Midpoint(), range(8)) == 0
    assert mean_side_information_bits(Hamiltonian(), range(8)) == 0
    assert mean_side_information_bits(BlendedMidpoint("1/4"), range(8)) == 2
    assert mean_side_information_bits(BlendedMidpoint("1/4", granularity="branch"), range(8)) == 4
    assert mean_side_information_bits(BlendedMidpoint([1, 1, "1/4", "1/2"]), range(2, 4)) == 1.5
