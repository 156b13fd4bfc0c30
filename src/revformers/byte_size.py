"""Conversion between memory sizes as text, such as "24GiB", and bytes."""

import re
import reprlib

UNITS = {
    "B": 1,
    "kB": 10**3,
    "KiB": 2**10,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}


def parse_size(text: str) -> int:
    """Return the bytes of a size such as "24GiB", "80 GB" or "512mib"; case does not matter.

    Raises:
        ValueError: if `text` is not a size above 0.

    """
    match = re.fullmatch(r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*([A-Za-z]+)\s*", text)
    units = {unit.lower(): size for unit, size in UNITS.items()}
    if match is None or match[2].lower() not in units or not float(match[1]):
        raise ValueError(f"A size is a number with a unit, such as 24GiB or 80GB, not {reprlib.repr(text)}.")
    return int(float(match[1]) * units[match[2].lower()])


def size_in_words(count: int) -> str:
    """Return a number of bytes as text with three digits in TiB, GiB or MiB, e.g. "1.86 GiB"."""
    for unit in ("TiB", "GiB"):
        if count >= UNITS[unit]:
            return f"{count / UNITS[unit]:.3g} {unit}"
    return f"{count / UNITS['MiB']:.3g} MiB"
