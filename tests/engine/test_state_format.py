import pytest
import torch

from revformers.engine.fixed_point import INT64, FixedPoint
from revformers.engine.state_format import StateFormat, parse_states

CPU = torch.device("cpu")
FORMATS = [StateFormat(), StateFormat("int32"), StateFormat("int64"), StateFormat("auto", 14), StateFormat("int32", 24)]


@pytest.mark.parametrize("states", FORMATS, ids=str)
def test_the_text_of_a_format_gives_it_again(states):
    assert parse_states(str(states)) == states
    assert parse_states(states) is states


def test_formats_as_text():
    assert [str(states) for states in FORMATS] == ["auto", "int32", "int64", "auto:14", "int32:24"]
    assert parse_states("auto:16") == parse_states("auto"), "16 digits are usual"
    assert StateFormat("int64").fraction_bits is None, "only 32-bit states have a choice"


@pytest.mark.parametrize(
    ("states", "cause"),
    [
        ("int16", "no states 'int16'; choose auto, int32 or int64"),
        ("", "no states ''"),
        ("auto:", "no states 'auto:'"),
        ("auto:1e1", "no states"),
        ("auto:-1", "no states"),
        ("auto:7", "8 to 24 binary digits after the point, not 7"),
        ("int32:25", "8 to 24 binary digits after the point, not 25"),
        ("int64:30", "64-bit states always have 30"),
        ("int64:16", "64-bit states always have 30"),
    ],
)
def test_a_text_that_names_no_format_is_refused(states, cause):
    with pytest.raises(ValueError, match=cause):
        parse_states(states)


@pytest.mark.parametrize(
    "make", [lambda: parse_states(32), lambda: StateFormat("auto", 15.5), lambda: StateFormat("auto", True)]
)
def test_so_is_what_is_no_text_and_what_are_no_digits(make):
    with pytest.raises(TypeError, match="not"):
        make()


def test_and_another_kind():
    with pytest.raises(ValueError, match="States are auto, int32 or int64, not 'int8'"):
        StateFormat("int8")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_auto_takes_32_bits_for_layers_of_16(dtype):
    narrow = FixedPoint(torch.int32, 14)
    assert StateFormat("auto", 14).of_pass(dtype, CPU) == (narrow if dtype.itemsize == 2 else INT64)
    assert StateFormat("int32", 14).of_pass(dtype, CPU) == narrow
    assert StateFormat("int64").of_pass(dtype, CPU) == INT64


def test_and_under_autocast_of_the_same_device():
    with torch.autocast("cpu", torch.bfloat16):
        assert StateFormat().of_pass(torch.float32, CPU) == FixedPoint(torch.int32, 16)
        assert StateFormat("int64").of_pass(torch.float32, CPU) == INT64
        assert StateFormat().of_pass(torch.float64, CPU) == INT64, "which autocast leaves as it is"
        assert StateFormat().of_pass(torch.float32, torch.device("meta")) == INT64, "which has no autocast"


@pytest.mark.parametrize(
    ("magnitude", "digits"), [(0.0, 16), (32511.0, 16), (32513.0, 15), (4 * 27195.0, 14), (2.0**22, 8)]
)
def test_a_format_gives_up_as_few_digits_as_a_magnitude_needs(magnitude, digits):
    held = StateFormat().that_holds(magnitude)
    assert held == StateFormat("auto", digits)
    assert held.in_32_bits.maximum_magnitude >= magnitude
    assert digits == 16 or StateFormat("auto", digits + 1).in_32_bits.maximum_magnitude < magnitude
    assert StateFormat("int32", 10).that_holds(magnitude) == StateFormat("int32", min(digits, 10)), "and has no more"


@pytest.mark.parametrize("magnitude", [2.0**22 + 1, float("inf"), float("nan")])
def test_what_32_bits_cannot_hold_is_left_to_64(magnitude):
    with pytest.raises(ValueError, match=r'do not hold a magnitude of .* revformers\.set_states\(model, "int64"\)'):
        StateFormat().that_holds(magnitude)
    assert StateFormat("int64").that_holds(magnitude) == StateFormat("int64")


def test_digits_of_another_format_are_a_limit():
    assert StateFormat("int32").at_most(StateFormat("auto", 14)) == StateFormat("int32", 14)
    assert StateFormat("auto", 12).at_most(StateFormat("auto", 14)) == StateFormat("auto", 12)
    assert StateFormat("int64").at_most(StateFormat("auto", 14)) == StateFormat("int64")
    assert StateFormat("auto", 20).at_most(StateFormat("int64")) == StateFormat("auto", 20), "which 64 bits are not"


def test_a_format_in_words_says_what_it_holds():
    assert all(
        word in StateFormat("auto", 14).in_words for word in ("auto:14: 32-bit", "130,048", "autocast", "64-bit")
    )
    assert "autocast" not in StateFormat("int32").in_words + StateFormat("int64").in_words
