import pytest

from revformers.errors import NotReversibleError, UserError, as_user_error, counted, reason_of, reason_with_type


def test_a_refused_value_is_one_line_for_the_user():
    with pytest.raises(UserError, match=r"^PEFT refuses it: first second\.$"), as_user_error("PEFT refuses it"):
        raise ValueError("first\n  second")


@pytest.mark.parametrize("kind", [UserError, NotReversibleError, TypeError])
def test_other_errors_stay_what_they_are(kind):
    error = kind("message")
    with pytest.raises(kind) as caught, as_user_error("Beginning"):
        raise error
    assert caught.value is error


def test_the_message_of_another_library_becomes_a_clause():
    assert reason_of(RuntimeError("one\n  two words.\n")) == "one two words"
    long = reason_of(RuntimeError("word " * 100))
    assert len(long) <= 300
    assert long.endswith("word [...]")


def test_a_number_has_its_noun_in_the_singular_or_the_plural():
    assert [counted(number, "record") for number in (0, 1, 2)] == ["0 records", "1 record", "2 records"]
    assert [counted(number, "bit") for number in (0.5, 1.0, 2.0)] == ["0.5 bits", "1 bit", "2 bits"]
    assert counted(2000, "record") == "2,000 records"


def test_a_reason_is_cut_within_a_word_that_is_too_long():
    long = reason_of(ValueError("bad: " + "x" * 400))
    assert long == "bad: " + "x" * 289 + " [...]"
    assert len(long) == 300
    exact = "x" * 300
    assert reason_of(ValueError(exact + ".")) == exact


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError(), "ValueError"),
        (OSError(" .\n"), "OSError"),
        (KeyError("a"), "KeyError: 'a'"),
        (KeyError(), "KeyError"),
    ],
)
def test_an_error_that_says_nothing_or_a_key_alone_is_named_by_its_type(error, reason):
    assert reason_of(error) == reason
    with (
        pytest.raises(UserError, match=f"^The Trainer refuses it: {reason}\\.$"),
        as_user_error("The Trainer refuses it", (Exception,)),
    ):
        raise error
    with pytest.raises(UserError, match=f"^{reason}$"), as_user_error(kinds=(Exception,)):
        raise error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TypeError("no list."), "TypeError: no list"),
        (KeyError("added_tokens"), "KeyError: 'added_tokens'"),
        (KeyError(), "KeyError"),
    ],
)
def test_the_type_of_an_error_is_named_once(error, expected):
    assert reason_with_type(error) == expected
