"""Text in Markdown from committed results, for the modules whose tables cog writes into the pages."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lab import REPOSITORY

RESULTS = REPOSITORY / "lab" / "results"


def result(name: str) -> dict[str, Any]:
    """Return a committed result by the name of its file."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def committed(pattern: str) -> list[dict[str, Any]]:
    """Return the results whose names match a pattern; print a sentence if there are none."""
    studies = [result(file.stem) for file in sorted(RESULTS.glob(f"{pattern}.json"))]
    if not studies:
        print("\nNot measured yet.\n")
    return studies


def mebibytes(size: float) -> str:
    """Return a size in bytes as text, in MiB."""
    return f"{size / 2**20:,.0f} MiB" if size >= 10 * 2**20 else f"{size / 2**20:.1f} MiB"


def quartiles(ratio: Mapping[str, float]) -> str:
    """Return a median with its quartiles."""
    return f"{ratio['median']:.2f} ({ratio['lower']:.2f} to {ratio['upper']:.2f})"


def spread(shares: Sequence[float]) -> str:
    """Return the mean of some shares, with the lowest and the highest if there are several."""
    mean = f"{sum(shares) / len(shares):+.2%}"
    return mean if len(shares) == 1 else f"{mean} ({min(shares):+.2%} to {max(shares):+.2%})"


def show(columns: str, rows: Iterable[Sequence[Any]]) -> None:
    """Print a Markdown table; `columns` holds its headings, separated by ``|``."""
    heads = [head.strip() for head in columns.split("|")]
    print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        assert len(row) == len(heads)
        print(f"| {' | '.join(map(str, row))} |")
    print()


def code(file: str) -> None:
    """Print a file of the repository as a block of Python."""
    print(f"\n```python\n{(REPOSITORY / file).read_text(encoding='utf-8')}```\n")
