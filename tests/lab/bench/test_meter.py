import sys

import pytest
import torch

from lab.bench.meter import peak_allocated_bytes, peak_resident_bytes

MEBIBYTE = 2**20
CPU = torch.device("cpu")


def allocate(mebibytes):
    return torch.empty(mebibytes * MEBIBYTE, dtype=torch.uint8)


def test_the_peak_is_what_was_held_at_once():
    def function():
        first = allocate(3)
        second = allocate(2)
        del first
        third = allocate(2)
        del second, third

    assert peak_allocated_bytes(function, CPU) == 5 * MEBIBYTE


def test_tensors_from_before_do_not_count_in_either_direction():
    before = [allocate(7)]

    def function():
        before.clear()
        allocate(2)

    assert peak_allocated_bytes(function, CPU) == 2 * MEBIBYTE


def test_what_an_operator_needs_for_itself_counts():
    tensor = torch.ones(MEBIBYTE)

    def function():
        (tensor.double() * 2).sum()  # 8 MiB for the copy, 8 MiB for the product

    assert 16 * MEBIBYTE <= peak_allocated_bytes(function, CPU) < 16.1 * MEBIBYTE


def test_a_second_measurement_does_not_see_the_first():
    kept = []
    assert peak_allocated_bytes(lambda: kept.append(allocate(4)), CPU) == 4 * MEBIBYTE
    assert peak_allocated_bytes(lambda: kept.append(allocate(1)), CPU) == MEBIBYTE


def test_nothing_allocated_is_zero():
    assert peak_allocated_bytes(lambda: None, CPU) == 0


def test_only_devices_with_a_meter():
    with pytest.raises(ValueError, match="not on meta"):
        peak_allocated_bytes(lambda: None, torch.device("meta"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_resident_memory_sees_pages_that_were_touched_and_given_back():
    # So large that the C library asks the system for it whatever its settings are.
    peak = peak_resident_bytes(lambda: torch.ones(64 * MEBIBYTE, dtype=torch.uint8))
    assert 60 * MEBIBYTE < peak < 80 * MEBIBYTE


@pytest.mark.gpu
def test_the_peak_on_a_gpu():
    device = torch.device("cuda")
    kept = torch.empty(MEBIBYTE, dtype=torch.uint8, device=device)
    assert peak_allocated_bytes(lambda: torch.empty_like(kept), device) == MEBIBYTE
