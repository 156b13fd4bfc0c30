"""Formats measured numbers for people."""

from collections.abc import Mapping, Sequence
from typing import Any

MEBIBYTE = 2**20


def mebibytes(count: float) -> str:
    """Format a number of bytes in MiB, e.g. "12.3 MiB"."""
    size = count / MEBIBYTE
    return f"{size:,.0f} MiB" if size >= 100 else f"{size:.1f} MiB"


def seconds(duration: float) -> str:
    """Format a duration, in milliseconds below one second."""
    return f"{duration:.2f} s" if duration >= 1 else f"{1000 * duration:.0f} ms"


def ratio(quartiles: Mapping[str, float]) -> str:
    """Format the median of a ratio with its quartiles, e.g. "1.24 (1.21 to 1.27)"."""
    return f"{quartiles['median']:.2f} ({quartiles['lower']:.2f} to {quartiles['upper']:.2f})"


def share(value: float) -> str:
    """Format a share in per cent, with three decimals if it is small and none if it is large."""
    percent = 100 * value
    if not percent:
        return "0%"
    return f"{percent:,.0f}%" if abs(percent) >= 10 else f"{percent:.3f}%"


def bits(value: float | None) -> str:
    """Format bits per element per layer, or a dash if nothing is rebuilt."""
    return "-" if value is None else f"{value:.2g}"


def yes_no(value: bool | None) -> str:
    """Format a verdict, or a dash if there is none."""
    return "-" if value is None else "yes" if value else "NO"


def network_in_words(network: Mapping[str, Any]) -> str:
    """Describe the network and the batch of a measurement in one line."""
    return (
        f"{network['architecture']}, {network['layers']} layers, width {network['width']}, vocabulary "
        f"{network['vocabulary']:,}, {network['parameters']:,} parameters; steps of {network['batch_size']} x "
        f"{network['sequence_length']} tokens in {network['precision']} on {network['device']}"
    )


def listed(words: Sequence[str]) -> str:
    """Join words as in a sentence: "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
