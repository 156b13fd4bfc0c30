"""Benchmarks, studies, evaluation and fuzzing of the library. They run in a checkout and are not installed."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
"""Root of the checkout; processes that import `lab` need it on their module path."""
