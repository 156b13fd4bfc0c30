"""The operators of `revformers.engine.ops` as PyTorch sees them."""

import importlib
import sys
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from revformers import engine
from revformers.dynamics.base import Coefficients
from revformers.engine import ops
from revformers.engine.ops import cpu
from revformers.engine.packing import packed_size

CONTRACTS = Coefficients(Fraction(1, 4), Fraction(3, 4), 0.3)
EXPANDS = Coefficients(Fraction(-3, 2), Fraction(5, 2), 1.0)


def states(seed=0):
    generator = torch.Generator().manual_seed(seed)
    previous, current = (torch.randint(-(2**40), 2**40, (2, 3, 4), generator=generator) for _ in range(2))
    return previous, current, torch.randn(2, 3, 4, generator=generator)


def room(coefficients):
    bits = coefficients.side_information_bits
    return torch.zeros(packed_size(24, bits), dtype=torch.uint8) if bits else None


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operators = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators.append(func)
        return func(*args, **(kwargs or {}))


def numbers(coefficients):
    a, b = coefficients.previous, coefficients.current
    return a.numerator, a.denominator, b.numerator, b.denominator, coefficients.update, 30


@pytest.mark.parametrize("coefficients", [CONTRACTS, EXPANDS], ids=["contracts", "expands"])
def test_pytorch_finds_nothing_wrong_with_the_operators(coefficients):
    previous, current, update = states()
    kept = room(coefficients)
    possible = torch.ones((), dtype=torch.bool) if kept is None else None
    torch.library.opcheck(ops.ADVANCE, (previous, current, update, *numbers(coefficients), kept))
    torch.library.opcheck(ops.RETREAT, (previous, current, update, *numbers(coefficients), kept, possible))
    torch.library.opcheck(ops.READ, (previous, torch.bfloat16, 30))


@pytest.mark.parametrize("coefficients", [CONTRACTS, EXPANDS], ids=["contracts", "expands"])
def test_operators_give_the_bits_of_the_kernels(coefficients):
    previous, current, update = states()
    steps = [(ops, previous.clone(), room(coefficients)), (cpu, previous.clone(), room(coefficients))]
    for module, moved, kept in steps:
        module.advance(moved, current, coefficients, update, kept, 30)
    (_, moved, kept), (_, expected, expected_kept) = steps
    assert torch.equal(moved, expected)
    assert kept is expected_kept is None or torch.equal(kept, expected_kept)
    assert torch.equal(ops.read(moved, torch.float32, 30), cpu.read(moved, torch.float32, 30))
    moved[0, 0, 0] += 1
    expected = moved.clone()
    verdicts = [
        module.retreat(tensor, current, coefficients, update, kept, 30)
        for module, tensor in ((ops, moved), (cpu, expected))
    ]
    assert torch.equal(moved, expected)
    assert verdicts == [None, None] or torch.equal(*verdicts)


def test_a_dispatch_mode_sees_a_step_as_one_operator():
    previous, current, update = states()
    with Seen() as seen:
        ops.advance(previous, current, CONTRACTS, update, room(CONTRACTS), 30)
        ops.read(current, torch.float32, 30)
    assert [operator for operator in seen.operators if operator.namespace == "revformers"] == [ops.ADVANCE, ops.READ]
    assert len(seen.operators) == 3  # and the room for side information


def test_fake_tensors_step():
    with FakeTensorMode():
        previous, current, update = (
            torch.empty(2, 3, dtype=kind) for kind in (torch.int64, torch.int64, torch.float32)
        )
        ops.advance(previous, current, CONTRACTS, update, None, 30)
        assert ops.retreat(previous, current, EXPANDS, update, None, 30).dtype == torch.bool
        assert ops.read(previous, torch.bfloat16, 30).dtype == torch.bfloat16


def test_a_compiled_step_gives_the_same_bits():
    previous, current, update = states()
    expected = previous.clone()
    cpu.advance(expected, current, EXPANDS, update, None, 30)
    torch.compile(ops.advance, backend="aot_eager", fullgraph=True)(previous, current, EXPANDS, update, None, 30)
    assert torch.equal(previous, expected)


def test_the_operators_of_a_module_that_is_imported_again_give_the_same_bits():
    previous, current, update = states()
    expected, expected_kept = previous.clone(), room(CONTRACTS)
    cpu.advance(expected, current, CONTRACTS, update, expected_kept, 30)
    modules = [sys.modules.pop(ops.__name__)]
    try:
        for _ in range(2):
            modules.append(importlib.import_module(ops.__name__))
            del sys.modules[ops.__name__]
    finally:
        sys.modules[ops.__name__] = engine.ops = ops
    assert len(set(modules)) == 3
    for module in modules:
        moved, kept = previous.clone(), room(CONTRACTS)
        module.advance(moved, current, CONTRACTS, update, kept, 30)
        assert torch.equal(moved, expected)
        assert torch.equal(kept, expected_kept)


def test_a_step_is_no_part_of_autograds_graph():
    previous, current, update = states()
    ops.advance(previous, current, EXPANDS, update.requires_grad_(), None, 30)
    assert not previous.requires_grad


@pytest.mark.parametrize(
    ("is_cuda", "switch", "triton", "is_fused"),
    [(True, None, True, True), (True, "plain", True, False), (True, None, False, False), (False, None, True, False)],
)
def test_the_fused_kernels_move_states_on_cuda_where_triton_is_there(monkeypatch, is_cuda, switch, triton, is_fused):
    fused = SimpleNamespace()
    monkeypatch.setattr(ops, "cuda", fused, raising=False)
    monkeypatch.setattr(ops, "find_spec", lambda _: triton or None)
    monkeypatch.delenv(ops.SWITCH, raising=False)
    if switch is not None:
        monkeypatch.setenv(ops.SWITCH, switch)
    monkeypatch.setattr(ops, "_fused_wanted", ops._fused_wanted.__wrapped__)
    assert ops.kernels_for(SimpleNamespace(is_cuda=is_cuda)) is (fused if is_fused else cpu)


def test_another_choice_of_kernels_is_refused(monkeypatch):
    monkeypatch.setenv(ops.SWITCH, "fast")
    with pytest.raises(ValueError, match="REVFORMERS_KERNELS can only be set to \"plain\", not 'fast'"):
        ops._fused_wanted.__wrapped__()
