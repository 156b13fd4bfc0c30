import pytest

from lab.bench import numbers


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (numbers.mebibytes(12.34 * 2**20), "12.3 MiB"),
        (numbers.mebibytes(2048 * 2**20), "2,048 MiB"),
        (numbers.seconds(0.4321), "432 ms"),
        (numbers.seconds(1.5), "1.50 s"),
        (numbers.ratio({"lower": 1.1, "median": 1.234, "upper": 1.3}), "1.23 (1.10 to 1.30)"),
        (numbers.share(0), "0%"),
        (numbers.share(0.00241), "0.241%"),
        (numbers.share(20.77), "2,077%"),
        (numbers.bits(None), "-"),
        (numbers.bits(2), "2"),
        (numbers.bits(1.25), "1.2"),
        (numbers.yes_no(None), "-"),
        (numbers.yes_no(True), "yes"),
        (numbers.yes_no(False), "NO"),
        (numbers.listed(["a"]), "a"),
        (numbers.listed(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_numbers_are_written_for_people(written, expected):
    assert written == expected
