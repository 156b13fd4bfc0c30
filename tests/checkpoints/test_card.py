import warnings
from importlib.metadata import version

import pytest
import transformers
from huggingface_hub import ModelCard

import revformers as rf
from revformers.checkpoints.card import MARKER, model_card
from revformers.models.parts import record_provenance
from revformers.models.provenance import Provenance
from tests.conversion.test_convert import TEXT, smooth_llama
from tests.test_reversible import llama
from tests.tiny_models import tiny


@pytest.fixture
def converted():
    model = smooth_llama()
    conversion = rf.convert(model, 0.5, TEXT)
    measured = Provenance(
        base_model="someone/base",
        made_by="revformers convert someone/base --calibration text.txt --out converted",
        source="text.txt",
        calibration_tokens=240,
        original_loss=2.0,
        loss=2.05,
        held_out_tokens=12345,
        held_out_original_loss=2.5,
        held_out_loss=2.0,
    )
    record_provenance(model, measured)
    return model, conversion


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("LlamaForCausalLM", "text-generation"),
        ("LlamaForSequenceClassification", "text-classification"),
        ("LlamaForTokenClassification", "token-classification"),
        ("LlamaModel", None),
    ],
)
def test_the_card_names_the_task_of_the_head(architecture, task, tmp_path):
    config = tiny("llama").config
    config.pad_token_id = 0
    model = rf.make_reversible(getattr(transformers, architecture)(config), rf.Midpoint())
    model.save_pretrained(tmp_path)
    assert ModelCard.load(tmp_path / "README.md").data.pipeline_tag == task


def test_the_card_of_a_converted_model_tells_what_is_known(converted, tmp_path):
    model, conversion = converted
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "revformers"
    assert card.data.base_model == "someone/base"
    assert card.data.pipeline_tag == "text-generation"
    assert {"revformers", "reversible"} <= set(card.data.tags)
    lines = card.text.splitlines()
    assert f"    {conversion.dynamics.recurrence}" in lines
    # 6 layers at half a bit: three with a = 1/2, which costs one bit, three with a = 1, which costs none.
    assert "| 1/2 | 3 | 1 |" in lines
    assert "| 1 | 3 | 0 |" in lines
    assert "keeps 0.5 bits of side information per element and layer on average" in card.text
    assert f"Update predictors: 6, {conversion.added_parameters:,} parameters together." in lines
    assert "| calibration | 240 | 2.0000 | 2.0500 | +2.50% |" in lines
    assert "| held out | 12,345 | 2.5000 | 2.0000 | -20.00% |" in lines
    assert "revformers convert someone/base --calibration text.txt --out converted" in lines
    for words in (
        "not the ordinary network",
        "pip install revformers",
        "`revformers run`",
        "from_pretrained",
        f"torch {version('torch')}",
    ):
        assert words in card.text


def test_what_is_not_known_is_not_in_the_card():
    card = model_card(rf.make_reversible(llama(), rf.Leapfrog()))
    assert card.data.base_model is None
    for words in ("Measured", "Made by", "None", "nan"):
        assert words not in card.text
    assert "Update predictors: none." in card.text
    assert "| -1 | 4 | 0 |" in card.text


@pytest.mark.parametrize("dynamics", [rf.Residual(), rf.Hamiltonian(), rf.BlendedMidpoint.random(0)])
def test_every_dynamics_has_a_card(dynamics):
    activations = "rebuild" if dynamics.reversible else "checkpoint"
    card = model_card(rf.make_reversible(llama(), dynamics, activations))
    assert dynamics.recurrence in card.text
    assert ("side information" in card.text) == dynamics.reversible
    assert ("each of its two steps" in card.text) == (dynamics.granularity == "branch")


def test_the_hub_id_that_the_weights_came_from_is_the_base_model():
    model = llama()
    model.config.name_or_path = "someone/base"
    assert model_card(rf.make_reversible(model, rf.Midpoint())).data.base_model == "someone/base"


def test_our_own_card_is_written_anew(tmp_path):
    rf.make_reversible(llama(), rf.Midpoint()).save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rf.make_reversible(llama(), rf.Leapfrog()).save_pretrained(tmp_path)
    assert rf.Leapfrog().recurrence in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("text", ["# My model\n", ""])
def test_a_card_that_a_user_wrote_stays(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    with pytest.warns(UserWarning, match="is kept; delete it"):
        rf.make_reversible(llama(), rf.Midpoint()).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == text
    assert rf.from_pretrained(tmp_path)


def test_a_card_without_the_marker_line_belongs_to_the_user(tmp_path):
    model = rf.make_reversible(llama(), rf.Midpoint())
    model.save_pretrained(tmp_path)
    edited = (tmp_path / "README.md").read_text().replace(MARKER, "Better words.")
    (tmp_path / "README.md").write_text(edited)
    with pytest.warns(UserWarning, match="is kept; delete it"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == edited
