import json
import signal

import pytest
import torch

import revformers as rf
from revformers.cli.main import main
from revformers.data.tokenizer import train_tokenizer
from revformers.models.parts import reversible_stack, update_predictors
from tests.conversion.test_convert import smooth_llama

TEXT = "".join(f"line {number} of a text that is about nothing, twice {2 * number}\n" for number in range(400))


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    model = smooth_llama()
    model.resize_token_embeddings(300)
    model.save_pretrained("ordinary")
    train_tokenizer([TEXT], 300).save_pretrained("ordinary")
    return tmp_path


def convert(*options):
    return main(["convert", "ordinary", "--calibration", "text.txt", "--out", "converted", "--length", "32", *options])


@pytest.mark.thorough
def test_a_model_is_converted_and_saved_with_its_tokenizer(workspace, capsys):
    assert convert("--bits", "0.5", "--sequences", "16", "--held_out", "4") == 0
    shown = capsys.readouterr().out
    assert "converted at 0.5 bits" in shown
    assert "loss on held-out text" in shown
    # 6 layers of width 32: half a bit an element, against float32 checkpoints.
    assert "12 bytes per token beside the two states' 512; checkpointing keeps 768" in " ".join(shown.split())
    assert "pass 1 of 2, fits to the original network: layer 1/6  about" in shown
    model = rf.from_pretrained("converted")
    assert len(update_predictors(model)) == 6
    assert str(reversible_stack(model).states) == "auto"
    assert reversible_stack(model).dynamics.side_information_bits(0) in (0, 1)
    assert rf.verify_gradients(model, {"input_ids": torch.arange(20).view(2, 10)}).bit_exact
    assert (workspace / "converted/tokenizer.json").is_file()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "Interrupted"), (signal.SIGTERM, 143, "Terminated")]
)
def test_an_interrupted_command_goes_on(workspace, monkeypatch, capsys, number, code, word):
    options = ("--bits", "1", "--sequences", "8", "--held_out", "2")
    monkeypatch.setattr("revformers.conversion.unfinished.SECONDS_BETWEEN_SAVES", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr("revformers.conversion.convert.measure_layer_costs", lambda *_: signal.raise_signal(number))
        assert convert(*options) == code
    assert f"{word}; the same command continues from converted.unfinished" in capsys.readouterr().out
    assert not (workspace / "converted").exists()
    assert convert(*options) == 0
    assert "Continuing the conversion in converted.unfinished" in capsys.readouterr().out
    assert not (workspace / "converted.unfinished").exists()
    assert rf.from_pretrained("converted")


def test_without_predictors(workspace):
    assert convert("--predictor", "none", "--sequences", "4", "--held_out", "2") == 0
    assert not update_predictors(rf.from_pretrained("converted"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bits", "9"], "from 0 to 8, not 9"),
        (["--calibration", "nowhere.txt"], "no text file 'nowhere.txt'"),
        (["--calibration", "empty.txt"], "empty.txt is empty"),
        (["--length", "30000"], "does not fill one block of 30000 tokens"),
        (["--calibration", "records.jsonl", "--text_column", "words"], "Set --text_column to"),
        (["--calibration", "text_column.jsonl"], "revformers convert: text_column.jsonl holds 1 record"),
        (["--calibration", "text_column.jsonl"], "for validation; add text.\n"),
        (["--out", "ordinary"], "is not empty"),
        (["--bits", "1", "--target_loss_increase", "1%"], "only one of bits and target_loss_increase"),
        (["--target_loss_increase", "much"], "written 0.5% or 0.005, not 'much'"),
        (["--two_evaluations"], "two_evaluations replaces predictors; give predictor"),
        (["--states", "int16"], "no states 'int16'; choose auto, int32 or int64"),
        (["--rank", "0"], "whole number from 1"),
        (["--curve", "curve.doc"], "as .svg or .png"),
        (["--curve", "curve.svg"], "--curve draws the budgets of --compare; give some"),
        (["--compare"], "--compare takes the budgets to compare"),
        (["--compare", "1", "--curve", "text.txt/curve.svg"], "Nothing can be written to text.txt/curve.svg"),
        (["--out", "text.txt"], "text.txt is a file; name a directory"),
        (["--out", "/proc/nowhere"], "Nothing can be written to /proc/nowhere"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(workspace, arguments, message, capsys):
    (workspace / "empty.txt").touch()
    (workspace / "text_column.jsonl").write_text('{"text": "a text"}\n')
    (workspace / "records.jsonl").write_text('{"text": "a text"}\n' * 9)
    assert convert(*arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


@pytest.mark.thorough
def test_a_target_that_no_budget_meets_is_one_sentence(workspace, monkeypatch, capsys):
    monkeypatch.setattr("revformers.conversion.convert.TARGET_BUDGETS", (0,))
    assert convert("--target_loss_increase", "1e-9%", "--predictor", "none") == 2
    shown = capsys.readouterr().err
    assert "misses the target" in shown
    assert shown.count("\n") == 1


def test_a_tokenizer_of_another_model_is_refused(workspace, capsys):
    train_tokenizer([TEXT * 2], 400).save_pretrained("ordinary")
    model = smooth_llama()
    model.save_pretrained("ordinary")
    assert convert() == 2
    assert "but the model's vocab_size is" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_model_that_is_converted_already_is_refused(workspace, capsys):
    assert convert("--sequences", "4", "--held_out", "2") == 0
    assert main(["convert", "converted", "--calibration", "text.txt", "--out", "again", "--length", "32"]) == 2
    assert "already reversible" in capsys.readouterr().err


@pytest.mark.thorough
def test_the_table_the_curve_and_the_card_tell_what_every_budget_costs(workspace, capsys):
    options = ["--bits", "1", "--compare", "0", "3", "--curve", "curve.svg", "--sequences", "16", "--held_out", "4"]
    assert convert("--predictor", "none", "--allocation", "calibrated", *options) == 0
    shown = capsys.readouterr().out
    rows = json.loads((workspace / "converted/conversion.json").read_text())
    assert [row["bits"] for row in rows] == [0, 3, 1]
    assert rows[1]["loss"] < rows[0]["loss"]
    for row in rows:
        assert f"{row['loss']:.4f}" in shown
    assert "3 bits" in (workspace / "curve.svg").read_text()
    assert "--compare 0 3" in (workspace / "converted/README.md").read_text()


@pytest.mark.thorough
def test_a_target_chooses_the_bits(workspace, capsys):
    """A loose target takes fewer bits than a tight one, and both are kept."""
    chosen = {}
    for target in ("20%", "0.01%"):
        options = ["--target_loss_increase", target, "--sequences", "8", "--held_out", "4", "--out", target]
        assert convert("--predictor", "none", *options) == 0
        (chosen[target],) = json.loads((workspace / target / "conversion.json").read_text())
        assert chosen[target]["loss_increase"] <= float(target.removesuffix("%")) / 100
    assert chosen["20%"]["bits"] < chosen["0.01%"]["bits"]


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "Interrupted"), (signal.SIGTERM, 143, "Terminated")]
)
@pytest.mark.parametrize(
    ("stopped", "said", "saved"),
    [
        (
            "transformers.PreTrainedTokenizerBase.save_pretrained",
            "the same command continues from converted.unfinished.",
            False,
        ),
        (
            "revformers.conversion.convert.Converter.finish",
            "the model is already saved in converted; remove converted.unfinished, which nothing needs.",
            True,
        ),
        ("revformers.cli.convert._table", "the model is already saved in converted.", True),
    ],
)
def test_a_command_that_is_stopped_while_it_saves_says_what_is_left(
    workspace, monkeypatch, capsys, stopped, said, saved, number, code, word
):
    monkeypatch.setattr(stopped, lambda *_, **__: signal.raise_signal(number))
    assert convert("--bits", "1", "--sequences", "4", "--held_out", "2", "--rank", "1") == code
    captured = capsys.readouterr()
    assert f"{word}; {said}\n" in captured.out
    assert captured.err == ""
    assert (workspace / "converted/conversion.json").is_file() is saved
    assert (workspace / "converted.unfinished").exists() is ("converted.unfinished" in said)
