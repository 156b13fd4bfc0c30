import pytest

from revformers.planning.cost import SetupCost
from revformers.planning.setups import rebuild
from revformers.planning.timeline import MemoryByCategory
from revformers.setup import STORE


@pytest.mark.parametrize(
    ("setup", "title", "bits"),
    [(STORE, "store", None), (rebuild(0), "rebuild, 0 bits", 0), (rebuild(4), "rebuild, 4 bits", 4)],
)
def test_a_row_is_called_by_its_policy_and_its_bits(setup, title, bits):
    row = SetupCost(setup, MemoryByCategory(weights=7), 0, 1, 0, 256, 1.0, 1.5)
    assert row.title == title
    written = row.to_dict()
    assert list(written)[:3] == ["name", "bits", "memory"]
    assert (written["name"], written["bits"], written["memory"]["weights"]) == (setup.activations.name, bits, 7)
    assert written["time"] == 1.5
    assert "setup" not in written
