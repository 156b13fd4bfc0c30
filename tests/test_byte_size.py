import pytest

from revformers.byte_size import parse_size, size_in_words


def test_sizes_are_read_in_any_case():
    assert [parse_size(text) for text in ("24GiB", "80 GB", "1.5mib")] == [24 * 2**30, 80 * 10**9, 3 * 2**19]


@pytest.mark.parametrize("text", ["much", "24", "0GiB", "-1GiB", "5 GiBs", ""])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match=f"such as 24GiB or 80GB, not {text!r}"):
        parse_size(text)


def test_sizes_are_written_in_the_largest_unit():
    assert [size_in_words(count) for count in (2**18, 300 * 2**20, 2**31, 3 * 2**40)] == [
        "0.25 MiB",
        "300 MiB",
        "2 GiB",
        "3 TiB",
    ]


def test_a_size_of_many_digits_is_refused():
    with pytest.raises(ValueError, match=r"such as 24GiB or 80GB, not '9+\.\.\.9*GiB'"):
        parse_size("9" * 5000 + "GiB")
