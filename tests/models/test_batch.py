import pytest
import torch

from revformers.models.batch import inputs_of


def test_tensors_move_to_the_device_and_the_rest_stays_as_it_is():
    tokens, settings = torch.ones(1, 2), {"use_cache": False}
    inputs = inputs_of({"input_ids": tokens, "settings": settings}, torch.device("meta"))
    assert inputs["input_ids"].device.type == "meta"
    assert tokens.device.type == "cpu"
    assert inputs["settings"] is settings


@pytest.mark.parametrize("batch", [torch.ones(1, 2), None], ids=["tensor", "none"])
def test_another_batch_than_a_mapping_is_refused(batch):
    with pytest.raises(TypeError, match=rf"A batch is a mapping .* not {type(batch).__name__}"):
        inputs_of(batch, torch.device("cpu"))
