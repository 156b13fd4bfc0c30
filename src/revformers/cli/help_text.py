"""Help and reports that fit the terminal."""

import re
import shutil
import textwrap
from collections.abc import Mapping

MARGIN = 2
"""Blanks before and after the names of a list."""


def paragraphs(text: str) -> str:
    """Return a text whose paragraphs are wrapped at the width of the terminal; indented lines stay as they are."""
    width = shutil.get_terminal_size().columns
    blocks = text.split("\n\n")
    return "\n\n".join(one if one.startswith(" ") else textwrap.fill(one, width) for one in blocks)


def listing(purposes: Mapping[str, str]) -> str:
    """Return a list of names and what they are for, wrapped at the width of the terminal."""
    width = shutil.get_terminal_size().columns
    longest = max(map(len, purposes))
    after = " " * (longest + 2 * MARGIN)
    return "\n".join(
        textwrap.fill(
            purpose,
            width,
            initial_indent=f"{' ' * MARGIN}{name:<{longest + MARGIN}}",
            subsequent_indent=after,
            break_on_hyphens=False,
        )
        for name, purpose in purposes.items()
    )


def wrapped_report(text: str) -> str:
    """Return the lines of a report wrapped at the width of the terminal, each continued under where its value begins.

    The value is what follows the first two blanks after a name; a line without a name continues under its own start.
    """
    width = shutil.get_terminal_size().columns
    lines = []
    for line in text.splitlines():
        found = re.match(r"\s*\S.*?\s{2,}(?=\S)|\s*", line)
        assert found is not None, "the second alternative matches every line"
        indent = " " * min(found.end(), width // 2)
        lines.append(textwrap.fill(line, width, subsequent_indent=indent, break_on_hyphens=False))
    return "\n".join(lines)
