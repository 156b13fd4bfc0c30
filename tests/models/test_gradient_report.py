import dataclasses

import pytest

from revformers import GradientReport

EXACT = GradientReport(
    bit_exact=True,
    decided=True,
    kernels="as set",
    varying=(),
    missing="",
    max_relative_error=0.0,
    differing=(),
    parameters=3,
    entries=12_345,
    loss=1.5,
    rebuilt_loss=1.5,
    recurrence="p[l+1] = p[l-1] + 2 f(p[l])",
    states="64-bit integers",
    dtype="float32",
    device="cpu",
)
WRONG = {"bit_exact": False, "max_relative_error": 0.5, "differing": ("a", "b", "c", "d")}


@pytest.mark.parametrize(
    ("changes", "verdict", "kernels"),
    [
        ({}, "rebuilt gradients equal stored gradients to the bit", None),
        (WRONG, "rebuilt gradients DIFFER from stored gradients in 4 parameters, at worst a, b, c", None),
        (
            {"kernels": "deterministic", "varying": ("a",)},
            "rebuilt gradients equal stored gradients to the bit",
            "PyTorch's deterministic ones, because with the usual ones two passes with stored activations differ in "
            "1 parameter",
        ),
        (
            {"bit_exact": False, "rebuilt_loss": 1.5000001},
            "the loss with rebuilt activations DIFFERS from the loss with stored ones, and gradients do not",
            None,
        ),
        (
            {**WRONG, "differing": ("a",)},
            "rebuilt gradients DIFFER from stored gradients in 1 parameter, at worst a",
            None,
        ),
        (
            {"kernels": "deterministic"},
            "rebuilt gradients equal stored gradients to the bit",
            "PyTorch's deterministic ones, because with the usual ones the gradients differ and the losses do not",
        ),
        (
            {**WRONG, "decided": False, "varying": ("a", "b"), "missing": "put_"},
            "rebuilt gradients CANNOT BE COMPARED with stored gradients to the bit: PyTorch has no deterministic form "
            "of put_",
            "they vary: two passes with stored activations differ in 2 parameters",
        ),
        (
            {**WRONG, "decided": False, "varying": ("a",)},
            "rebuilt gradients CANNOT BE COMPARED with stored gradients to the bit: its kernels vary",
            "they vary: two passes with stored activations differ in 1 parameter",
        ),
    ],
)
def test_a_report_says_what_was_found_and_with_which_kernels(changes, verdict, kernels):
    first, *lines = str(dataclasses.replace(EXACT, **changes)).splitlines()
    found = dict(line.strip().split("  ", 1) for line in lines)
    assert first == verdict
    assert found.get("kernels", "").strip() == (kernels or "")
    assert found["compared"].strip() == "3 parameters, 12,345 numbers, float32 on cpu"
    assert found["loss"].strip() == "1.500000 stored, 1.500000 rebuilt"
