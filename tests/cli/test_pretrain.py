import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from revformers.cli.main import main
from revformers.training import pretrain as module
from tests.training.tiny import write_recipe


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return str(write_recipe(tmp_path))


def test_a_run_from_the_command_line(recipe, tmp_path, capsys):
    options = ["--training.max_steps", "2", "--sample.prompts", "the", "--sample.max_new_tokens", "4"]
    assert main(["pretrain", recipe, *options]) == 0
    shown = capsys.readouterr().out
    assert "step 2/2  loss" in shown
    assert "Finished 2 steps" in shown
    assert 'revformers.from_pretrained("runs/tiny/model")' in shown
    assert (tmp_path / "runs" / "tiny" / "sample.txt").read_text().startswith("the")


def test_a_run_ends_in_silence_when_its_reader_has_gone(recipe, tmp_path, capsys, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as output, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", output)
        assert main(["pretrain", recipe, "--training.max_steps", "2"]) == 141
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "runs/tiny/metrics.json").exists()
    assert main(["pretrain", recipe, "--training.max_steps", "2", "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--training.max_step", "5"], "did you mean 'max_steps'?"),
        (["--dynamics.name", "euler"], "no dynamics called 'euler'"),
        (["--data.source", "nowhere.txt"], "There is no text file 'nowhere.txt'."),
        (["--data.block_length", "64"], "the model reads at most 48"),
        (["--model.architecture", "mamba", "--model.config", "{}"], "mamba"),
        (["--data.source", "empty.txt"], "empty.txt is empty."),
        (["stray"], "'stray' follows no option"),
        (["--resume"], "holds no checkpoint to resume from"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(recipe, tmp_path, options, message, capsys):
    (tmp_path / "empty.txt").touch()
    assert main(["pretrain", recipe, *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("arguments", [[], ["--training.max_steps", "5"], ["nowhere.yaml"]])
def test_a_recipe_must_be_named(arguments, capsys):
    assert main(["pretrain", *arguments]) == 2
    assert "recipe" in capsys.readouterr().err


def test_help_documents_every_field_with_the_values_of_the_recipe(recipe, capsys):
    assert main(["pretrain", recipe, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--training.max_steps INT" in shown
    assert "(default: 8)" in shown
    assert "--model.config.n_embd INT" in shown
    assert "--overwrite" in shown


def test_control_c_while_the_sample_is_written_leaves_a_run_that_only_has_to_finish(recipe, capsys, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    words = ["pretrain", recipe, "--sample.prompts", "the", "--sample.max_new_tokens", "4", "--training.max_steps", "2"]
    with monkeypatch.context() as patched:
        patched.setattr(module, "write_samples", interrupt)
        assert main(words) == 130
    captured = capsys.readouterr()
    assert "Interrupted; runs/tiny/checkpoint-2 is the last checkpoint." in captured.out
    (resume,) = (line.removeprefix("To continue:  ") for line in captured.out.splitlines() if "To continue:" in line)
    assert shlex.split(resume) == ["revformers", *words, "--resume"]
    assert "anything to save" not in captured.err
    assert main(shlex.split(resume)[1:]) == 0
    assert "Finished 2 steps" in capsys.readouterr().out


@pytest.mark.thorough
def test_control_c_leaves_a_run_that_the_shown_command_resumes(recipe, tmp_path):
    command = [sys.executable, "-m", "revformers.cli.main", "pretrain", recipe]
    options = ["--training.max_steps", "2000", "--training.save_steps", "2000", "--output", "a run"]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 2/"):
            break
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    (resume,) = (line.removeprefix("To continue:  ") for line in shown.splitlines() if line.startswith("To continue:"))
    words = shlex.split(resume)
    assert words == ["revformers", "pretrain", recipe, *options, "--resume"]
    (checkpoint,) = (tmp_path / "a run").glob("checkpoint-*")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    started = time.monotonic()
    assert main([*words[1:], "--training.max_steps", str(step + 1)]) == 0
    assert time.monotonic() - started < 60
    assert (tmp_path / "a run" / "model").is_dir()
