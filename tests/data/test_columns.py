"""The text in a column, or one sentence that says what is there."""

import datetime
import decimal

import pytest

from revformers.data.columns import named_kind, nested_records, text_of
from revformers.errors import UserError

THREE = [{"text": "one"}, {"text": "zwei €"}, {"text": "three"}]


def test_text_of_a_record():
    assert text_of("Line 1", {"body": "a"}, "body") == "a"
    with pytest.raises(UserError, match=r"Line 1 has no column 'text'; its columns are body\. Set data\.x to the one"):
        text_of("Line 1", {"body": "a"}, "text", "data.x")
    with pytest.raises(UserError, match=r"The records seem to lie in 'data': write them to a file of their own"):
        text_of("Line 1", {"version": 1, "data": THREE}, "text")


@pytest.mark.parametrize("turn", [{"role": "user", "content": "a"}, {"from": "human", "value": "a"}])
def test_turns_of_a_conversation_are_not_taken_for_records(turn):
    assert nested_records({"id": 1, "turns": [turn]}) == ""
    assert "'data'" in nested_records({"turns": [turn], "data": [{"conversations": [turn]}]})


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "null"),
        (True, "true or false"),
        (1, "a number"),
        (0.5, "a number"),
        (["a", "b"], "a list"),
        ({}, "an object"),
        (b"a", "binary data"),
        (datetime.datetime(2020, 1, 1), "a time"),
        (datetime.date(2020, 1, 1), "a date"),
        (datetime.timedelta(1), "a duration"),
        (decimal.Decimal("1.5"), "a decimal number"),
        (1j, "a value of the type complex"),
    ],
)
def test_what_is_no_text_is_said_in_words(value, kind):
    assert named_kind(value) == kind
    with pytest.raises(UserError, match=f"Line 1 holds {kind} in its column 'text', not text"):
        text_of("Line 1", {"text": value}, "text")
