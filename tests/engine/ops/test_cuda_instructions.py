"""The machine code of the Triton kernels, compiled for GPUs that need not be there.

The interpreter of Triton computes with NumPy, so it cannot see what a compiler makes of the floating-point operations.
Their bits are those of PyTorch only if nothing is contracted, flushed to zero, approximated or rounded in another
direction.
"""

import os
import re
import subprocess
from fractions import Fraction

import pytest
import torch

import revformers as rf
from revformers.dynamics.base import Coefficients
from revformers.engine.packing import packed_size

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")

import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.jit import mangle_type  # noqa: E402

from revformers.engine.ops import cuda as fused  # noqa: E402

CAPABILITIES = [80, 90, 100]
FLOATING = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
INTEGERS = [torch.int32, torch.int64]
COUNT = 1000

# By a: its side information has 0 to 8 bits; it divides by a shift or not, forwards or back; or it expands.
BLENDS = [Fraction(1), Fraction(-1, 2), Fraction(7, 9), Fraction(243, 256), Fraction(-5, 3), Fraction(3, 2)]
SMALL_BLENDS = [Fraction(1, 3), Fraction(1, 5), Fraction(1, 16), Fraction(1, 30), Fraction(-1, 64), Fraction(2, 255)]
SMALL_BLENDS += [Fraction(1, 250), Fraction(-1, 256)]


class Launches:
    """Stands in for a kernel and keeps the arguments of its launches."""

    def __init__(self):
        self.arguments = []

    def __getitem__(self, grid):
        return lambda *arguments, **constants: self.arguments.append((arguments, constants))


def launches(monkeypatch, blend, dtype, update, current=None, side_information=True):
    """Return the arguments with which a step and its inverse start the kernel."""
    coefficients = Coefficients(blend, 1 - blend if current is None else current, 0.3)
    states, bits = torch.zeros(COUNT, dtype=dtype), coefficients.side_information_bits if side_information else 0
    packed = torch.zeros(packed_size(COUNT, bits), dtype=torch.uint8) if bits else None
    step = Launches()
    monkeypatch.setattr(fused, "_step", step)
    fused.advance(states, states, coefficients, states.to(update), packed, 16)
    fused.retreat(states, states, coefficients, states.to(update), packed, 16)
    monkeypatch.undo()
    return step.arguments


def source(kernel, arguments, constants):
    """Return what Triton compiles for these arguments, where no pointer is aligned to less than 16 bytes."""
    names = kernel.arg_names
    signature = dict(zip(names, map(mangle_type, arguments), strict=False)) | dict.fromkeys(constants, "constexpr")
    aligned = [index for index, kind in enumerate(signature.values()) if kind.startswith("*")]
    return ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(index,): [["tt.divisibility", 16]] for index in aligned},
    )


def compiled(kernel, arguments, constants, capability):
    return triton.compile(source(kernel, arguments, constants), target=GPUTarget("cuda", capability, 32))


def instructions(kernel):
    """Return the different instructions of a compiled kernel, as PTX."""
    return set(re.findall(r"^\s*(?:@!?%p\d+ )?([a-z]\w*\.[\w.:]+)", kernel.asm["ptx"], re.MULTILINE))


def inexact(found):
    """Return those instructions that may give other bits than PyTorch's multiplications and conversions."""
    return {
        name
        for name in found
        if name.startswith(("fma.", "ex2.", "rcp.", "div.full", "div.rn.f", "add.f", "sub.f", "add.rn.f"))
        or re.search(r"\.(ftz|approx|sat|rz|rm|rp|rni|rmi|rpi)\b", name)
        # To integers towards zero; from integers, and to fewer bits, to the nearest even.
        or re.fullmatch(r"cvt(?!\.rzi)[.\w]*\.[su]\d+\.b?f\d+", name)
        or re.fullmatch(r"cvt(?!\.rn)[.\w]*\.b?f\d+\.[su]\d+", name)
        or re.fullmatch(r"cvt(?!\.rn)[.\w]*\.(f32\.f64|b?f16\.f32|b?f16\.f64)", name)
    }


def bytes_of_stack(kernel, tmp_path):
    """Return the local memory of a thread, where registers are spilled to."""
    file = tmp_path / "kernel.cubin"
    file.write_bytes(kernel.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(file)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [int(size) for size in re.findall(r"(?:STACK|LOCAL):(\d+)", usage)]


def assert_exact(kernel, tmp_path):
    found = instructions(kernel)
    assert any(name.startswith("cvt.") for name in found)
    assert inexact(found) == set()
    # Eight bytes are what some calls of the routine that divides 64 bits put aside.
    assert sum(bytes_of_stack(kernel, tmp_path)) <= 16


def assert_steps_exact(monkeypatch, tmp_path, capability, *arguments, **options):
    for launch in launches(monkeypatch, *arguments, **options):
        assert_exact(compiled(fused._step, *launch, capability), tmp_path)


def assert_reads_exact(monkeypatch, tmp_path, capability, dtype, values):
    read = Launches()
    monkeypatch.setattr(fused, "_read", read)
    fused.read(torch.zeros(COUNT, dtype=dtype), values, 16)
    monkeypatch.undo()
    assert_exact(compiled(fused._read, *read.arguments[0], capability), tmp_path)


@pytest.mark.parametrize("update", FLOATING)
def test_a_step_computes_as_pytorch_does(monkeypatch, tmp_path, update):
    assert_steps_exact(monkeypatch, tmp_path, 90, Fraction(243, 256), torch.int32, update)


@pytest.mark.parametrize("values", FLOATING)
@pytest.mark.parametrize("dtype", INTEGERS)
def test_reading_computes_as_pytorch_does(monkeypatch, tmp_path, dtype, values):
    assert_reads_exact(monkeypatch, tmp_path, 90, dtype, values)


@pytest.mark.thorough
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("blend", BLENDS)
def test_steps_compute_as_pytorch_does_on_every_gpu(monkeypatch, tmp_path, capability, dtype, blend):
    for update in FLOATING:
        assert_steps_exact(monkeypatch, tmp_path, capability, blend, dtype, update)


@pytest.mark.thorough
@pytest.mark.parametrize("blend", SMALL_BLENDS)
def test_steps_with_side_information_of_every_width(monkeypatch, tmp_path, blend):
    for current in (Fraction(0), Fraction(1, 3)):
        assert_steps_exact(monkeypatch, tmp_path, 90, blend, torch.int32, torch.bfloat16, current)


@pytest.mark.thorough
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_reading_computes_as_pytorch_does_on_every_gpu(monkeypatch, tmp_path, capability):
    for dtype in INTEGERS:
        for values in FLOATING:
            assert_reads_exact(monkeypatch, tmp_path, capability, dtype, values)


@triton.jit
def _contracts(values, OFFSET: tl.constexpr):
    index = tl.arange(0, 128)
    value = tl.load(values + index)
    tl.store(values + index, tl.exp2(value * value + OFFSET))


def test_contracted_and_approximate_operations_are_seen():
    found = instructions(compiled(_contracts, [torch.zeros(128)], {"OFFSET": 0.5}, 90))
    assert {name.split(".")[0] for name in inexact(found)} == {"fma", "ex2"}


def test_conversions_that_round_otherwise_are_seen():
    wrong = {"cvt.rni.s64.f32", "cvt.rz.bf16.f32", "cvt.rzi.ftz.s64.f32", "cvt.rz.f32.s64", "mul.ftz.f32"}
    right = {"cvt.rzi.s64.f32", "cvt.rn.bf16.f32", "cvt.f32.bf16", "cvt.rn.f32.s64", "mul.f32", "mul.rn.f32"}
    right |= {"cvt.u64.u32", "cvt.rn.f32.f64", "add.s64", "div.s64"}
    assert inexact(wrong | right) == wrong


def test_numbers_are_no_part_of_what_is_compiled():
    specialised = [(fused._step, ["target", "current", "update", "extra"]), (fused._read, ["states", "values"])]
    for kernel, pointers in specialised:
        free = [p.name for p in kernel.params if not p.is_constexpr and not p.do_not_specialize]
        assert free == pointers


def test_random_blends_compile_no_more_than_four_steps(monkeypatch):
    """Forwards and back, |a| below 1 and above; not one for each of 32 layers."""
    dynamics = rf.BlendedMidpoint.random(0)
    steps = [
        launch
        for layer in range(32)
        for launch in launches(monkeypatch, dynamics.layer_blend(layer), torch.int32, torch.bfloat16)
    ]
    kinds = {(tuple(map(mangle_type, arguments)), *constants.values()) for arguments, constants in steps}
    assert len(steps) == 64
    assert len(kinds) == 4
