"""The study of stability on a tiny model, its figures and its tables."""

import json
import sys

import pytest

from lab.docs import markdown, stability
from lab.studies import stability as study
from lab.studies import stability_figures
from revformers.data.tokenizer import train_tokenizer
from tests.lab.figures import assert_alike
from tests.tiny_models import tiny

TEXT = "".join(f"line {number} of a text, twice {2 * number}\n" for number in range(60))


@pytest.mark.thorough
def test_the_study_and_what_is_drawn_from_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = tiny("llama", num_hidden_layers=2)
    model.resize_token_embeddings(300)
    model.save_pretrained("SmolLM2")
    train_tokenizer([TEXT], 300).save_pretrained("SmolLM2")
    (tmp_path / "text.txt").write_text(TEXT)
    sizes = ["--length", "3", "--layers", "2", "--blocks", "2", "--probes", "1"]
    words = ["SmolLM2", "--fresh", "SmolLM2", "--text", "text.txt", *sizes, "--output", "stability.json"]
    monkeypatch.setattr(sys, "argv", ["stability.py", *words])
    study.main()
    result = json.loads((tmp_path / "stability.json").read_text())
    trained, fresh = result["models"]
    assert (trained["name"], fresh["name"]) == ("SmolLM2", "SmolLM2, fresh weights")
    assert trained["spectra"] != fresh["spectra"]
    assert [block["layer"] for block in trained["blocks"]] == [0, 1]
    assert {one["name"] for one in trained["dynamics"]} == set(stability.DYNAMICS)
    files = stability_figures.draw(result, tmp_path)
    assert len(files) == 4
    monkeypatch.setattr(markdown, "RESULTS", tmp_path)
    capsys.readouterr()
    stability.growth()
    assert capsys.readouterr().out.count("| SmolLM2 |") == len(stability.DYNAMICS)


@pytest.mark.thorough
def test_the_committed_figures_are_those_of_the_committed_result(tmp_path):
    for file in stability_figures.draw(markdown.result("stability"), tmp_path):
        assert_alike(file, stability_figures.FOLDER / file.name)


def test_what_the_page_says_in_prose():
    """In the lists of docs/science/stability.md, and in the claims of docs/science/reproduction.md."""
    for model in markdown.result("stability")["models"]:
        blocks = [spectrum["block"] for spectrum in model["spectra"]]
        assert all(block["real_high"][0] > 0 for block in blocks), "every layer has a positive real part"
        sizes = [abs(complex(*block["magnitude"])) for block in blocks]
        assert max(sizes) == sizes[0], "the first layer has the largest eigenvalues"
        by_name = {one["name"]: one for one in model["dynamics"] if one["growth_backwards"]}
        forwards = {name: one["growth_forwards"][-1] for name, one in by_name.items()}
        backwards = {name: one["growth_backwards"][-1] for name, one in by_name.items()}
        assert min(forwards, key=forwards.get) == max(backwards, key=backwards.get) == "blended_midpoint"
        assert all(one["reversal_errors"]["bfloat16"][1] > 0.1 for one in by_name.values()), "more than a tenth"
        del forwards["blended_midpoint"]
        largest = "leapfrog" if model["name"].startswith("wikitext-12L") else "midpoint"
        assert max(forwards, key=forwards.get) == largest
        if model["name"].startswith("SmolLM2"):
            pairs = zip(*(by_name[name]["predicted_forward"] for name in ("leapfrog", "midpoint")), strict=True)
            assert sum(leapfrog <= midpoint for leapfrog, midpoint in pairs) == 1, "predicted the other way round"


def test_a_row_of_spectra_has_the_growth_of_its_own_layer(monkeypatch, capsys):
    def spectrum(layer, real):
        block = {"real_low": [-real, 0.0], "real_high": [real, 0.0], "imaginary": [0.0, 2.0]}
        return {"layer": layer, "state_rms": 2.0, "update_rms": real, "block": block, "branches": None}

    names = ("midpoint", "leapfrog", "hamiltonian")
    dynamics = [{"name": name, "predicted_forward": [place + 0.25, place + 0.5]} for place, name in enumerate(names, 1)]
    model = {"name": "a", "dynamics": dynamics, "spectra": [spectrum(0, 1.0), spectrum(4, 3.0)]}
    monkeypatch.setattr(stability, "result", lambda _: {"models": [model]})
    stability.spectra()
    assert capsys.readouterr().out.splitlines()[3:5] == [
        "| a | 0 | 0.5 | -1 to 1 | 2 | - to - | 1.25 | 2.25 | 3.25 |",
        "| a | 4 | 1.5 | -3 to 3 | 2 | - to - | 1.5 | 2.5 | 3.5 |",
    ]


def test_numbers_of_tables():
    numbers = (None, 0, 0.0123, 1.234, 12345.6, 1e-7, 1.9e13)
    assert [stability.number(value) for value in numbers] == [
        "-",
        "0",
        "0.0123",
        "1.23",
        "1.2 · 10^4",
        "1.0 · 10^-7",
        "1.9 · 10^13",
    ]


def test_eigenvalues_come_with_their_conjugates():
    assert stability_figures.points_of([[1.0, 2.0], [3.0, 0.0]]) == ([1.0, 3.0, 1.0, 3.0], [2.0, 0.0, -2.0, -0.0])


def test_sentences_on_growth(monkeypatch, capsys):
    def growing(name, forwards, backwards, error):
        errors = {"float32": [0.0, error]}
        return {
            "name": name,
            "growth_forwards": [1.0, forwards],
            "growth_backwards": [1.0, backwards],
            "reversal_errors": errors,
        }

    rows = [
        growing("midpoint", 2.0, 6.0, 0.001),
        growing("leapfrog", 5.0, 4.0, 0.1),
        growing("hamiltonian", 8, 4, 0.02),
    ]
    blend = growing("blended_midpoint", 1.0, 1e9, 1.0)
    monkeypatch.setattr(
        stability, "result", lambda _: {"models": [{"name": "wikitext-12L", "dynamics": [*rows, blend]}]}
    )
    stability.both_directions()
    shown = "a factor of 3.0 for midpoint on wikitext-12L, and of at most 2.0 elsewhere."
    assert shown in capsys.readouterr().out
    stability.equal_growth()
    assert "0.67 times as much as that of midpoint, and its error in float32 is 20 times" in capsys.readouterr().out


def test_the_sizes_of_eigenvalues_and_states_are_those_of_fresh_weights(monkeypatch, capsys):
    def spectrum(layer, magnitude, size):
        return {"layer": layer, "block": {"magnitude": magnitude}, "state_rms": size}

    fresh = [spectrum(0, [3.0, 4.0], 0.1), spectrum(2, [1.0, 0.0], 0.4), spectrum(5, [0.0, 0.5], 1.0)]
    models = [{"name": "a", "spectra": [spectrum(0, [99.0, 0.0], 9.0)]}, {"name": "a, fresh weights", "spectra": fresh}]
    monkeypatch.setattr(stability, "result", lambda _: {"models": models})
    stability.radius_and_size()
    assert capsys.readouterr().out == (
        "From layer 0 to layer 5 the largest magnitude falls 10 times and the root mean square of the state rises 10 "
        "times; their product is 0.500 in layer 0 and 0.400 to 0.500 from layer 2 on.\n"
    )
