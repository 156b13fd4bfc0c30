import shlex

import pytest

from revformers.cli.main import main
from revformers.training import trainer_run
from revformers.training.interruption import SaveOnSignal
from tests.training.tiny_finetune import CONVERSATIONS, write_model, write_recipe, write_records


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("finetune")
    write_model(directory)
    return str(write_recipe(directory))


@pytest.fixture
def recipe(shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REVFORMERS_CACHE", str(tmp_path / "cache"))
    return shared


@pytest.mark.thorough
def test_a_run_from_the_command_line(recipe, capsys):
    options = [
        "--training.max_steps",
        "2",
        "--adapter.kind",
        "lora",
        "--adapter.merge",
        "true",
        "--annealing.steps",
        "1",
    ]
    assert main(["finetune", recipe, *options]) == 0
    shown = capsys.readouterr().out
    assert "before training: original validation loss" in shown
    assert "step 2/2  loss" in shown
    assert "before training and" in shown
    assert 'Adapter:  revformers.load_adapter("runs/tiny/adapter")' in shown
    assert 'Model:    revformers.from_pretrained("runs/tiny/model")' in shown


@pytest.mark.thorough
def test_a_stopped_run_shows_the_command_that_goes_on(recipe, capsys, monkeypatch):
    class Interrupting(SaveOnSignal):
        def on_step_begin(self, args, state, control, **kwargs):
            self.received = 2

    with monkeypatch.context() as patched:
        patched.setattr(trainer_run, "SaveOnSignal", Interrupting)
        assert main(["finetune", recipe, "--output", "a run"]) == 130
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("To continue:"))
    words = shlex.split(line.removeprefix("To continue:  "))
    assert words == ["revformers", "finetune", recipe, "--output", "a run", "--resume"]
    assert main(words[1:]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--training.max_step", "5"], "did you mean 'max_steps'?"),
        (["--model.name", "nowhere"], "nowhere"),
        (["--model.quantization", "int3"], "'model.quantization' takes one of none, int8, nf4"),
        (["--data.source", "nowhere.txt"], "There is no text file 'nowhere.txt'."),
        (["--conversion.bits", "9"], "from 0 to 8"),
        (["--annealing.steps", "50"], "annealing.steps must be below training.max_steps (4), not 50"),
        (["--loss.chunk", "0"], "loss.chunk must be at least 1"),
        (["--loss.cross_entropy", "0"], "loss.cross_entropy must be above 0 without distillation"),
        (["--adapter.rank", "0"], "adapter.rank must be at least 1"),
        (["--data.source", "chat.json", "--data.columns.messages", "turns"], "has no column 'turns'"),
        (["--resume"], "holds no checkpoint to resume from"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(recipe, tmp_path, options, message, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_records(tmp_path / "chat.json", CONVERSATIONS)
    assert main(["finetune", recipe, *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("arguments", [[], ["--training.max_steps", "5"], ["nowhere.yaml"]])
def test_a_recipe_must_be_named(arguments, capsys):
    assert main(["finetune", *arguments]) == 2
    assert "recipe" in capsys.readouterr().err


def test_help_documents_every_field_with_the_values_of_the_recipe(recipe, capsys):
    assert main(["finetune", recipe, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--training.max_steps INT" in shown
    assert "(default: 4)" in shown
    assert "--conversion.bits" in shown
    assert "--overwrite" in shown
