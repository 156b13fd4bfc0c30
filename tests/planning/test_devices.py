import pytest
import torch

from revformers.planning.devices import DEVICES, Device, speeds_of


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


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L40S", None),
        ("NVIDIA B200", None),
    ],
)
def test_the_speeds_are_those_of_the_device_or_a_remark_says_whose(monkeypatch, name, known):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    speeds, remark = speeds_of(torch.device("cuda"))
    assert speeds == DEVICES[known or "h100"]
    assert (remark is None) == (known is not None)
    assert remark is None or f"no data sheet of {name}" in remark


def test_a_device_without_a_name_is_called_by_its_type():
    assert "no data sheet of a CPU;" in speeds_of(torch.device("cpu"))[1]
