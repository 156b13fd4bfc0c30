import dataclasses

import pytest

from revformers.planning.cost import SetupCost
from revformers.planning.setups import OVERLAPPED, rebuild
from revformers.planning.timeline import MemoryByCategory
from revformers.setup import OFFLOAD, STORE

ROW = SetupCost(
    STORE,
    memory=MemoryByCategory(weights=7),
    host=0,
    largest_batch=1,
    host_of_largest_batch=0,
    longest_context=256,
    operations=1.0,
    time=1.5,
)


@pytest.mark.parametrize(
    ("setup", "title", "bits"),
    [
        (STORE, "store", None),
        (OFFLOAD, "serial offload", None),
        (OVERLAPPED, "offload", None),
        (rebuild(0), "rebuild, 0 bits", 0),
        (rebuild(4), "rebuild, 4 bits", 4),
    ],
)
def test_a_row_is_called_by_its_policy_and_its_bits(setup, title, bits):
    row = dataclasses.replace(ROW, setup=setup)
    assert row.title == title
    written = row.to_dict()
    assert list(written)[:4] == ["name", "bits", "mlp_tile", "memory"]
    assert (written["name"], written["bits"], written["memory"]["weights"]) == (title.split(",")[0], bits, 7)
    assert written["time"] == 1.5
    assert "setup" not in written


def test_a_way_is_a_setup_without_its_tiles():
    setup = dataclasses.replace(rebuild(2), mlp_tile=64)
    row = dataclasses.replace(ROW, setup=setup)
    assert row.way == rebuild(2)
    assert row.to_dict()["mlp_tile"] == 64
