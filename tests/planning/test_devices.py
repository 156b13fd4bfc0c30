import pytest
import torch

from revformers.planning.devices import DEVICES, Device


def test_products_run_at_the_speed_of_their_dtype():
    device = Device(bfloat16=4.0, float32=1.0, memory=2.0, link=1.0)
    assert device.operations(torch.bfloat16) == 4
    assert device.operations(torch.float32) == device.operations(torch.float16) == 1


@pytest.mark.parametrize("name", DEVICES)
def test_speeds_are_in_operations_and_bytes_a_second(name):
    """A slip of a unit is three orders of magnitude; between these devices there is not one."""
    device = DEVICES[name]
    assert 1e14 < device.bfloat16 < 1.5e15
    assert 1e13 < device.float32 < 1e14
    assert 2e11 < device.memory < 1e13
    assert 1e10 < device.link < device.memory / 5
