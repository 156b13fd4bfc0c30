"""What measures the library: benchmarks, studies, evaluation, fuzzing. It is run in a checkout and not installed."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
"""The checkout; processes that import `lab` need it in their module path."""
