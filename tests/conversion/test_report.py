"""What a conversion says of itself before it is put to use."""

import dataclasses

import pytest

import revformers as rf
from revformers.checkpoints.card import model_card
from revformers.conversion.fit import LayerFit
from tests.conversion.test_convert import TEXT, smooth_llama

GOOD = LayerFit(explained=0.9, error=1e-4, largest_token=2.0)


@pytest.fixture(scope="module")
def conversion():
    """A conversion without anything to remark."""
    found = rf.convert(smooth_llama(), 4, TEXT)
    return dataclasses.replace(found, original_loss=2.0, loss=2.01, fits=(GOOD,) * 6, fitted_tokens=16 * found.features)


def test_a_good_conversion_has_none(conversion):
    assert conversion.remarks == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss": 2.03}, "The loss rises by 1.5%, more than 1%: give more bits or more calibration text"),
        (
            {"fitted_tokens": 511},
            "are few for predictors that read 32 numbers each: give ",
        ),
        (
            {"fits": (GOOD, dataclasses.replace(GOOD, explained=0.4), *(GOOD,) * 4)},
            "In 1 of 6 layers the predictor explains less than",
        ),
        (
            {"fits": (*(GOOD,) * 5, dataclasses.replace(GOOD, largest_token=4700.0))},
            "4,700 times as large as the median",
        ),
    ],
)
def test_each_cause_is_one_sentence_of_its_own(conversion, change, words):
    (remark,) = dataclasses.replace(conversion, **change).remarks
    assert words in remark
    assert remark in str(dataclasses.replace(conversion, **change))


def test_blends_alone_need_no_text_to_fit(conversion):
    assert dataclasses.replace(conversion, fits=(), features=0, fitted_tokens=8).remarks == ()


def test_the_card_repeats_them(tmp_path):
    model = smooth_llama()
    found = rf.convert(model, 1, TEXT[:1])
    assert found.remarks
    model.save_pretrained(tmp_path)
    for known in (model, rf.from_pretrained(tmp_path)):
        assert all(f"* {remark}" in model_card(known).text for remark in found.remarks)
