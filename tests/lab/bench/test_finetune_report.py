"""The page on a fine-tuning run, whose figures are those of the files that it was made from."""

import json
import re

import pytest
import yaml

from lab.bench.report import write_report
from tests.lab.bench.test_report import HISTORY, Page

METRICS = {
    "original_validation_loss": 2.5,
    "initial_validation_loss": 2.51,
    "validation_loss": 2.0,
    "deployed_validation_loss": 2.002,
    "steps": 30,
    "tokens": 15_000,
    "seconds": 61.0,
}
RECIPE = {
    "model": {"name": "some/model<b>"},
    "conversion": {"bits": 6, "predictor": "none", "activations": "rebuild"},
    "adapter": {"kind": "lora", "rank": 16},
}
QUARTILES = {"lower": 0.9, "median": 1.1, "upper": 1.2}
ENVIRONMENT = {
    "processor": "a processor",
    "cores": 2,
    "torch_threads": 2,
    "memory_bytes": 2**34,
    "accelerator": None,
    "system": "Linux",
    "python": "3.11",
    "revformers": "1",
    "torch": "2",
    "transformers": "5",
    "git_commit": None,
    "date": "2026-01-01",
}
STEPS = {
    "command": "python -m lab.studies.lora_step model converted",
    "environment": ENVIRONMENT,
    "tokens": 2048,
    "rows": [
        {"arm": arm, "way": way, "peak": peak, "seconds": QUARTILES, "time_over_checkpoint": QUARTILES}
        for arm, way, peak in [
            ("plain_store", "ordinary, store", 900 * 2**20),
            ("plain_checkpoint", "ordinary, checkpoint", 300 * 2**20),
            ("rebuild", "converted, rebuild", 200 * 2**20),
        ]
    ],
}
EVALUATION = {
    "command": "python -m lab evaluate converted --against model",
    "environment": ENVIRONMENT,
    "names": {"model": "runs/real/rebuild/model", "against": "ordinary"},
    "differences": [
        {
            "task": "local_piqa",
            "metric": "acc",
            "documents": 200,
            "value": 0.65,
            "standard_error": 0.03,
            "against": {"value": 0.66, "standard_error": 0.03},
            "difference": {"value": -0.01, "standard_error": None, "marked": False},
        }
    ],
}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    for name, value in (("history", HISTORY), ("metrics", METRICS), ("lora-step", STEPS), ("evaluation", EVALUATION)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    return tmp_path


def page_of(run):
    write_report(run, run / "page.html", ["report", "run"])
    return (run / "page.html").read_text()


def cells(text):
    return [" ".join(re.sub("<[^>]*>", " ", row).split()) for row in re.findall("<tr>(.*?)</tr>", text, re.S)]


def test_the_page_is_well_formed_and_escaped(run):
    text = page_of(run)
    page = Page(text)
    assert page.sections == ["training", "step", "evaluation", "reproduce"]
    assert "some/model&lt;b&gt; (converted at 6 bits, without predictors), activations: rebuild." in text
    assert "script" not in page.tags


def test_the_figures_are_those_of_the_files(run):
    rows = cells(page_of(run))
    assert "original 2.5000 -" in rows
    assert "converted 2.5100 +0.40%" in rows
    assert "fine-tuned 2.0000 -20.00%" in rows
    assert "fine-tuned, as the ordinary network 2.0020 -19.92%" in rows
    assert any(row.startswith("converted, rebuild 200 MiB") and "1.10 (0.90 to 1.20)" in row for row in rows)
    assert "Model: runs/real/rebuild/model; against: ordinary." in page_of(run)
    assert "local_piqa, acc 200 0.650 ± 0.030 0.660 ± 0.030 -0.010" in rows


def test_scores_of_a_model_alone_are_shown(run):
    """What `python -m lab evaluate` writes without --against."""
    score = {name: EVALUATION["differences"][0][name] for name in ("task", "metric", "documents", "value")}
    alone = {
        "command": "python -m lab evaluate",
        "environment": EVALUATION["environment"],
        "names": {"model": "runs/real/rebuild/model", "against": None},
        "model": {"scores": [{**score, "standard_error": 0.03}]},
    }
    (run / "evaluation.json").write_text(json.dumps(alone))
    text = page_of(run)
    assert "local_piqa, acc 200 0.650 ± 0.030" in cells(text)
    assert "Model: runs/real/rebuild/model. ±" in " ".join(text.split())
    assert "Not evaluated" not in text


def test_a_run_that_is_not_finished_says_so(run):
    for name in ("history", "metrics"):
        (run / f"{name}.json").unlink()
    with pytest.raises(FileNotFoundError, match="is not finished; give its command with --resume first"):
        page_of(run)


def test_the_tiles_compare_deployment_and_peaks(run):
    text = page_of(run)
    assert "<b>2.0020</b>" in text
    assert "validation loss; 2.5000 of the original" in text
    assert "peak rebuilding; 900 MiB storing, 300 MiB checkpointing" in text


def test_the_commands_are_those_that_made_it(run):
    text = page_of(run)
    for command in ("revformers finetune", STEPS["command"], EVALUATION["command"], "python -m lab report run"):
        assert command in text
    assert "revformers pretrain" not in text


def test_what_was_not_measured_says_how(run):
    for name in ("metrics", "lora-step", "evaluation"):
        (run / f"{name}.json").unlink()
    text = page_of(run)
    Page(text)
    assert "Not measured" in text
    assert "Not evaluated" in text
