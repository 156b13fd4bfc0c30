"""What several processes find out together is tested in tests/distributed/test_verify.py."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from revformers.models.processes import gathered, is_shared


@pytest.fixture
def two_processes(monkeypatch):
    """As if this were the first of two."""

    def gather(values, value, group):
        values[:] = [value, [f"of another, by {group}"]]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)


def test_a_model_that_is_not_shared_asks_no_other_process(two_processes):
    model = nn.Sequential(nn.Linear(2, 3))
    model[0].process_group = None
    assert gathered({"loss": 1.5}, model) == [{"loss": 1.5}]
    assert not is_shared(model)


def test_without_a_run_of_several_processes_nothing_is_shared():
    model = nn.SyncBatchNorm(3, process_group="some")
    assert gathered(1, model) == [1]


@pytest.mark.parametrize("name", ["process_group", "_inter_node_pg"])
def test_processes_of_a_wrapper_are_asked(two_processes, name):
    model = nn.Sequential(nn.Linear(2, 3))
    setattr(model[0], name, "wrapper")
    assert gathered("of this", model) == ["of this", "of another, by wrapper"]
    assert is_shared(model)


def test_processes_of_a_mesh_are_asked_along_every_dimension_once(two_processes):
    model = nn.Linear(2, 3)
    for parameter in model.parameters():
        parameter.device_mesh = SimpleNamespace(get_all_groups=lambda: ["rows", "columns"])
    assert gathered("of this", model) == ["of this", "of another, by rows", "of another, by columns"]
