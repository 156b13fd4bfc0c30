"""Compares figures."""

import re
from pathlib import Path

import pytest


def assert_alike(drawn: Path, committed: Path) -> None:
    """Fail if two SVG files differ in their texts or, by more than versions of matplotlib may, in their curves."""
    (texts, curves), (other_texts, other_curves) = _shape(drawn), _shape(committed)
    assert texts == other_texts
    assert len(curves) == len(other_curves)
    for curve, other in zip(curves, other_curves, strict=True):
        assert curve == pytest.approx(other, abs=0.05)


def _shape(file: Path) -> tuple[list[str], list[tuple[float, ...]]]:
    svg = file.read_text(encoding="utf-8")
    texts = sorted(re.findall(r">([^<>]*\w[^<>]*)</text>", svg))
    curves = [tuple(map(float, re.findall(r"-?\d+\.?\d*", path))) for path in re.findall(r' d="([^"]*)"', svg)]
    return texts, sorted(curves)
