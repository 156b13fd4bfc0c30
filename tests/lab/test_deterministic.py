import os

import pytest
import torch
from torch.utils import deterministic

from lab.deterministic import deterministic_kernels


def settings():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        deterministic.fill_uninitialized_memory,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


@pytest.mark.parametrize("only_warned", [False, True])
def test_the_settings_are_those_of_before_after_the_block_even_if_it_fails(only_warned):
    torch.use_deterministic_algorithms(only_warned, warn_only=only_warned)
    try:
        before, during = settings(), []

        def run():
            during.append(settings())
            torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))

        with pytest.raises(RuntimeError, match="not have a deterministic implementation"), deterministic_kernels():
            run()
        assert during == [(True, False, False, ":4096:8")]
        assert settings() == before
    finally:
        torch.use_deterministic_algorithms(False)
