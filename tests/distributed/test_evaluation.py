"""The validation loss on two processes, whose last batches are filled up with sequences that were evaluated before."""

import pytest
from transformers import Trainer

from tests.training.test_evaluation import RECORDS, SIZES, loss_at, loss_by_record, model_and_data

pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore")]


def losses(rank, records, directory):
    model, data = model_and_data("chunked", records)
    return [loss_at(size, model, data, directory) for size in SIZES], loss_at(4, model, data, directory, Trainer)


@pytest.mark.parametrize("records", [1, 3, RECORDS])
def test_every_sequence_counts_once(pair, tmp_path, records):
    expected = loss_by_record(*model_and_data("chunked", records))
    for found, of_the_trainer in pair.run(losses, records, tmp_path):
        assert found == pytest.approx([expected] * len(SIZES), rel=1e-6)
        assert (of_the_trainer != pytest.approx(expected, rel=1e-3)) == (records > 1)
