import pytest
from torch.utils import deterministic as filling

from revformers.models.deterministic_kernels import deterministic_kernels


@pytest.fixture
def deterministic(monkeypatch):
    """Every kernel gives the same bits in every call, or raises an error: two passes can be compared to the bit.

    Memory that no kernel writes stays as it is, as without this; PyTorch would fill it with a fixed number.
    """
    monkeypatch.setattr(filling, "fill_uninitialized_memory", False)
    with deterministic_kernels():
        yield
