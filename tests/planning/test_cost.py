import pytest

from revformers.planning.cost import SetupCost
from revformers.planning.timeline import MemoryByCategory


@pytest.mark.parametrize(("bits", "title"), [(None, "store"), (0, "store, 0 bits"), (4, "store, 4 bits")])
def test_a_row_is_called_by_its_policy_and_its_bits(bits, title):
    assert SetupCost("store", bits, MemoryByCategory(), 0, 1, 0, 256, 1.0, 1.0).title == title
