"""Standard output and standard error that take any text, whatever their encoding.

A terminal in the locale C, Latin-1 or cp1252 has no arrows or lines, and Python raises UnicodeEncodeError for them,
which would end a command, after hours of work, at its last line.
"""

import codecs
import sys
import unicodedata

HANDLER = "revformers.readable"

SUBSTITUTES = {
    "\N{UPWARDS ARROW}": "^",
    "\N{DOWNWARDS ARROW}": "v",
    "\N{RIGHTWARDS ARROW}": "->",
    "\N{PLUS-MINUS SIGN}": "+-",
    "\N{MULTIPLICATION SIGN}": "x",
    "\N{HORIZONTAL ELLIPSIS}": "...",
    "\N{NO-BREAK SPACE}": " ",
    "\N{BOX DRAWINGS LIGHT HORIZONTAL}": "-",
    "\N{BOX DRAWINGS HEAVY HORIZONTAL}": "-",
    "\N{BOX DRAWINGS LIGHT VERTICAL}": "|",
    **dict.fromkeys("╭╮╰╯┌┐└┘├┤┬┴┼", "+"),
}
"""What stands for signs of our own output; all other characters are written as Python escapes them."""


def readable_streams() -> None:
    """Let standard output and standard error write substitutes for characters that their encoding lacks."""
    codecs.register_error(HANDLER, _readable)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and getattr(stream, "errors", None) != HANDLER:
            reconfigure(errors=HANDLER)


def readable(text: str, encoding: str) -> str:
    """Return a text as `readable_streams` writes it in an encoding."""
    codecs.register_error(HANDLER, _readable)
    return text.encode(encoding, HANDLER).decode(encoding)


def without_controls(text: str) -> str:
    """Return a text that a model wrote with its control characters escaped, which could change a terminal."""
    return "".join(one if one in "\n\t" or unicodedata.category(one) != "Cc" else _escaped(one) for one in text)


def _readable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(SUBSTITUTES.get(one) or _escaped(one) for one in characters), error.end


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
