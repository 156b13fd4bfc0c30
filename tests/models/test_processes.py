"""What several processes find out together is tested in tests/distributed/test_verify.py."""

import pytest
import torch
from torch import nn

from revformers.models.processes import gathered


def refuse(*arguments):
    raise AssertionError("this model is not shared")


def test_a_model_that_is_not_shared_asks_no_other_process(monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_gather_object", refuse)
    assert gathered({"loss": 1.5}, nn.Linear(2, 3)) == [{"loss": 1.5}]


@pytest.mark.parametrize("mark", ["device_mesh", "process_group"])
def test_a_model_that_is_shared_asks_all(monkeypatch, mark):
    model = nn.Sequential(nn.Linear(2, 3))
    setattr(model[0].weight if mark == "device_mesh" else model[0], mark, object())

    def gather(values, value):
        values[:] = [value, "of another"]

    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    assert gathered("of this one", model) == ["of this one", "of another"]
