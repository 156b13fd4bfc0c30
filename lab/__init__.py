"""Benchmarks, studies, evaluation and fuzzing of the library. They run in a checkout and are not installed."""

from pathlib import Path

from revformers.cli.quiet import quiet_imports

REPOSITORY = Path(__file__).resolve().parents[1]
"""Root of the checkout; processes that import `lab` need it on their module path."""

# Every `python -m lab.NAME` imports this package first, and only then the libraries that have something to say.
quiet_imports()
