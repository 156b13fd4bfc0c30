import pytest
import torch

from revformers.models.update_predictor import PredictorForm, UpdatePredictor, predictor_form_of


@pytest.mark.parametrize("rank", [None, 2])
def test_a_prediction_is_the_affine_function_that_was_set(rank):
    predictor = UpdatePredictor(4, PredictorForm(("state", "update"), rank), dtype=torch.float64)
    features = [torch.randn(2, 3, 4) for _ in range(2)]
    assert not predictor(features).any(), "zero until it is fitted"
    maps = [torch.randn(rank or 4, 4, dtype=torch.float64) for _ in range(2)]
    bias, output = torch.randn(4, dtype=torch.float64), torch.randn(4, rank or 4, dtype=torch.float64)
    predictor.set(maps, bias, output if rank else None)
    summed = sum(feature.double() @ one.T for feature, one in zip(features, maps, strict=True))
    expected = (summed @ output.T if rank else summed) + bias
    torch.testing.assert_close(predictor(features), expected)
    predictor.scale = 0.5
    torch.testing.assert_close(predictor(features), expected / 2)


def test_a_form_survives_json():
    form = PredictorForm(["state", "previous_mlp"], 3)
    assert PredictorForm(**form.to_dict()) == form
    assert form.to_dict() == {"features": ["state", "previous_mlp"], "rank": 3}


def test_names_stand_for_the_last_feature():
    assert predictor_form_of("none") is None
    assert predictor_form_of("state").features == ("state",)
    assert predictor_form_of("update", 5) == PredictorForm(("state", "update"), 5)
    assert predictor_form_of("previous_mlp").features == ("state", "update", "previous_mlp")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PredictorForm(("state", "state")), "each once"),
        (lambda: PredictorForm(()), "some of state"),
        (lambda: PredictorForm(("attention",)), r"not \['attention'\]"),
        (lambda: PredictorForm(rank=0), "whole number from 1"),
        (lambda: PredictorForm(rank=True), "whole number from 1"),
        (lambda: predictor_form_of("mlp"), "no update predictor called 'mlp'; choose one of none"),
    ],
)
def test_other_forms_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
