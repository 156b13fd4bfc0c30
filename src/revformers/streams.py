"""Standard output and standard error that take any text, whatever their encoding, and a clear end if writing fails.

A terminal in the locale C, Latin-1 or cp1252 has no arrows or lines, and Python raises UnicodeEncodeError for them,
which would end a command, after hours of work, at its last line.
"""

import codecs
import contextlib
import os
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

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
    """Let standard output and standard error write substitutes for characters that their encoding lacks.

    A stream that was closed before the process began, which Python sets to None, becomes one that discards its text.
    """
    codecs.register_error(HANDLER, _readable)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # print discards its text then, but tyro, rich and tqdm call methods
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and getattr(stream, "errors", None) != HANDLER:
            reconfigure(errors=HANDLER)


CLOSED_PIPE = 141
"""The exit code of a program whose reader has gone: 128 plus the number of SIGPIPE."""


class WatchedStream:
    """A text stream that remembers the first error of a write, which may be handled before it reaches the caller.

    Attributes:
        error: that error, or None.

    """

    def __init__(self, stream: TextIO) -> None:
        """Watch a stream."""
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text."""
        with self._remembering():
            return self._stream.write(text)

    def flush(self) -> None:
        """Write what is in the buffer."""
        with self._remembering():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        """Return any other attribute of the stream."""
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _remembering(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
            raise


@contextlib.contextmanager
def watched_output() -> Iterator[None]:
    """End the block in one way if standard output did not take everything that was printed in it.

    Whatever the block made of the error, another library's or our own, is dropped. So is what else is printed, because
    Python would complain about it at its end.

    Raises:
        SystemExit: with `CLOSED_PIPE`, if the reader of the output has gone.
        OSError: with a sentence, for any other reason, such as a full disk.

    """
    watched = WatchedStream(sys.stdout)
    try:
        with contextlib.redirect_stdout(watched):
            yield
            watched.flush()
    except BaseException:
        if watched.error is None:
            raise
    if watched.error is None:
        return
    with contextlib.suppress(OSError):  # a stream of a test or a notebook has no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(watched.error, BrokenPipeError):
        raise SystemExit(CLOSED_PIPE)
    raise OSError(f"Standard output cannot be written: {watched.error.strerror}.")


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
