import io
import subprocess
import sys

import pytest

from revformers.streams import SUBSTITUTES, WatchedStream, readable_streams, watched_output, without_controls


def written(text, encoding, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    readable_streams()
    print(text, end="", flush=True)
    return stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "acc ↑ ± 0.5 ─│ é 漢"),
        ("ascii", r"acc ^ +- 0.5 -| \xe9 \u6f22"),
        ("latin-1", r"acc ^ ± 0.5 -| é \u6f22"),
        ("cp1252", r"acc ^ ± 0.5 -| é \u6f22"),
    ],
)
def test_what_an_encoding_lacks_is_written_in_other_signs(encoding, shown, monkeypatch):
    assert written("acc ↑ ± 0.5 ─│ é 漢", encoding, monkeypatch) == shown


def test_without_it_the_same_text_fails():
    with pytest.raises(UnicodeEncodeError):
        print("↑", file=io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))


def test_the_name_of_a_file_in_another_encoding_is_printed_too(monkeypatch):
    assert written(b"caf\xe9".decode("utf-8", "surrogateescape"), "utf-8", monkeypatch) == r"caf\udce9"


def test_substitutes_are_ascii():
    assert "".join(SUBSTITUTES.values()).isascii()


def test_streams_that_cannot_be_changed_stay(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    readable_streams()


def test_what_a_model_wrote_controls_no_terminal():
    assert without_controls("a\x1b[2Jb\r\x15\n\tç漢") == "a\\x1b[2Jb\\r\\x15\n\tç漢"


class Failing(io.StringIO):
    def write(self, text):
        raise OSError(28, text)


def test_a_watched_stream_remembers_its_first_error():
    watched = WatchedStream(Failing())
    for text in ("one", "another"):
        with pytest.raises(OSError, match=text):
            watched.write(text)
    assert watched.error.strerror == "one"
    working = WatchedStream(io.StringIO())
    print("text", file=working, flush=True)
    assert (working.error, working.getvalue()) == (None, "text\n")


def printed_and_mistaken():
    with watched_output():
        try:
            print("no room")
        except OSError as error:
            raise KeyError from error


def test_an_output_that_failed_is_the_error_of_its_block(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Failing())
    with pytest.raises(OSError, match=r"^Standard output cannot be written: no room\.$"):
        printed_and_mistaken()
    with pytest.raises(KeyError), watched_output():
        raise KeyError


def test_a_closed_stream_discards_as_print_does(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    readable_streams()
    with watched_output():
        print("text", flush=True)
        sys.stderr.write("text")
        assert not sys.stdout.isatty()


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_command_runs_with_a_closed_stream(closed):
    ended = subprocess.run(
        [
            "bash",
            "-c",
            f'"$0" -m revformers.cli.main plan --help {">&-" if closed == "stdout" else "2>&-"}',
            sys.executable,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not getattr(ended, closed)
    assert not ended.stderr
    assert bool(ended.stdout) == (closed == "stderr")
