import pytest

from revformers.data.section import DataSection, SourceSection
from revformers.errors import UserError


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (SourceSection, {"block_length": 1}, "data.block_length .*at least 2"),
        (SourceSection, {"validation_fraction": 0.0}, "data.validation_fraction"),
        (SourceSection, {"validation_fraction": 1.0}, "data.validation_fraction"),
        (SourceSection, {"validation_documents": 0}, "data.validation_documents"),
        (SourceSection, {"validation_blocks": 0}, "data.validation_blocks"),
        (DataSection, {"block_length": 1}, "data.block_length"),
        (DataSection, {"vocabulary_size": 256}, "data.vocabulary_size"),
        (DataSection, {"shuffle_buffer": 0}, "data.shuffle_buffer"),
    ],
)
def test_numbers_out_of_range_are_refused(kind, values, message):
    with pytest.raises(UserError, match=message):
        kind(**values)


def test_the_smallest_numbers_are_in_range():
    smallest = DataSection(block_length=2, validation_documents=1, validation_blocks=1, vocabulary_size=257)
    assert smallest.source == "stdlib"
