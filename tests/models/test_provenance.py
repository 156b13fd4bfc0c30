import json

import pytest

import revformers as rf
from revformers.models.parts import record_provenance, reversible_stack
from revformers.models.provenance import Provenance, hub_id
from tests.test_reversible import llama

FACTS = Provenance(
    base_model="someone/base",
    made_by="revformers convert",
    source="text.txt",
    loss=2.5,
    original_loss=2,
    held_out_loss=0,
    remarks=("The loss rises.",),
)


def test_it_survives_two_rounds_of_saving_and_loading(tmp_path):
    model = rf.make_reversible(llama(), rf.Midpoint())
    record_provenance(model, FACTS)
    for name in ("first", "second"):
        model.save_pretrained(tmp_path / name)
        model = rf.from_pretrained(tmp_path / name)
        assert reversible_stack(model).provenance == FACTS


def test_later_facts_take_the_place_of_earlier_ones_and_the_rest_stays():
    model = rf.make_reversible(llama(), rf.Midpoint())
    record_provenance(model, FACTS)
    record_provenance(model, Provenance(made_by="another command", held_out_tokens=0))
    known = reversible_stack(model).provenance
    assert (known.made_by, known.held_out_tokens) == ("another command", 0)
    assert (known.source, known.held_out_loss) == ("text.txt", 0)


def test_other_dynamics_make_it_another_model():
    model = rf.make_reversible(llama(), rf.Midpoint())
    record_provenance(model, FACTS)
    assert reversible_stack(rf.make_reversible(model, rf.Leapfrog())).provenance is None


def test_an_ordinary_model_has_none():
    with pytest.raises(ValueError, match="ordinary network"):
        record_provenance(llama(), FACTS)


def test_facts_of_a_later_version_do_not_stop_an_earlier_one(tmp_path):
    model = rf.make_reversible(llama(), rf.Midpoint())
    record_provenance(model, FACTS)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["revformers"]["provenance"]["weather"] = "rain"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert reversible_stack(rf.from_pretrained(tmp_path)).provenance == FACTS


def test_directories_are_no_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out/model").mkdir(parents=True)
    assert hub_id("someone/model") == "someone/model"
    assert [hub_id(name) for name in ("out/model", str(tmp_path), "./model", "~/model", "")] == [None] * 5
