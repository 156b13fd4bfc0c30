"""The style of plots that are files of their own."""

from typing import Any

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "revformers",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
