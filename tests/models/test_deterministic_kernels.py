import contextlib

import pytest
import torch

from revformers.models.deterministic_kernels import (
    NoDeterministicKernelError,
    deterministic_kernels,
    kernels_are_deterministic,
    operation_without_deterministic_form,
)


@pytest.fixture(autouse=True)
def _modes_restored():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("enabled", "only_warns"), [(False, False), (True, True), (True, False)])
def test_the_modes_outside_are_restored(enabled, only_warns):
    torch.use_deterministic_algorithms(enabled, warn_only=only_warns)
    with contextlib.suppress(KeyError), deterministic_kernels():
        assert kernels_are_deterministic()
        raise KeyError
    assert torch.are_deterministic_algorithms_enabled() == enabled
    assert torch.is_deterministic_algorithms_warn_only_enabled() == only_warns
    assert kernels_are_deterministic() == (enabled and not only_warns)


def test_an_operation_without_a_deterministic_form_is_found_without_ending_the_pass():
    values = torch.zeros(1)
    assert operation_without_deterministic_form(lambda: values.put_(torch.tensor([0]), torch.ones(1))) == "put_"
    assert values.item() == 1
    assert operation_without_deterministic_form(lambda: torch.ones(2) + 1) is None
    assert operation_without_deterministic_form(refused) == "scaled_dot_product_attention"
    with pytest.raises(ZeroDivisionError):
        operation_without_deterministic_form(lambda: 1 / 0)
    with pytest.raises(RuntimeError, match="shapes"):
        operation_without_deterministic_form(lambda: torch.ones(2, 3) @ torch.ones(2, 3))
    assert not torch.are_deterministic_algorithms_enabled()


def refused():
    raise RuntimeError("No available kernel. Aborting execution.")


def test_an_operation_without_a_deterministic_form_is_told_from_other_errors():
    with pytest.raises(NoDeterministicKernelError, match="put_") as missing, deterministic_kernels():
        torch.zeros(1).put_(torch.tensor([0]), torch.ones(1))
    assert missing.value.operation == "put_"
    with pytest.raises(NoDeterministicKernelError) as refused, deterministic_kernels():
        raise RuntimeError("No available kernel. Aborting execution.")
    assert refused.value.operation == "scaled_dot_product_attention"
    with pytest.raises(RuntimeError, match="shapes") as caught, deterministic_kernels():
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not isinstance(caught.value, NoDeterministicKernelError)
