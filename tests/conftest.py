"""What all tests share."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    """Skip the tests that need a GPU, with the reason, where PyTorch finds none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="PyTorch finds no CUDA device"))
