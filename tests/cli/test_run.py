import json
import os
import signal
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import yaml

import lab
import revformers as rf
from lab.__main__ import main as lab_main
from revformers.cli import run as module
from revformers.cli.main import main
from tests.lab.evaluation.tiny import tiny_model, tiny_tokenizer, write_data, write_rows

TASKS = Path(lab.__file__).parent / "evaluation/tasks"
TELL = "import json, sys\njson.dump([sys.argv, sys.path[0], __name__], open('told.json', 'w'))\n"
"""A script that writes down what it is given."""


@pytest.fixture(autouse=True)
def process(tmp_path, monkeypatch):
    """A directory to run in; what a run changes in the process is undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def write(name, text):
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(text)


def told():
    return json.loads(Path("told.json").read_text())


def console_script(monkeypatch, text):
    """Install a command `told-tool` whose function is `main` of a module with this text."""
    write("told_tool.py", text)
    sys.path.insert(0, os.getcwd())
    monkeypatch.delitem(sys.modules, "told_tool", raising=False)
    entry = EntryPoint("told-tool", "told_tool:main", "console_scripts")
    monkeypatch.setattr(module, "entry_points", lambda **_: [entry])


def test_a_script_gets_its_words_and_its_directory(process):
    write("scripts/tell.py", TELL)
    assert main(["run", "scripts/tell.py", "--steps", "2", "--help"]) == 0
    assert told() == [["scripts/tell.py", "--steps", "2", "--help"], str(process / "scripts"), "__main__"]


def test_a_module_gets_its_words_and_the_working_directory(process):
    write("tell.py", TELL)
    assert main(["run", "-m", "tell", "-m", "other"]) == 0
    (path, *words), first, name = told()
    assert Path(path).samefile("tell.py")
    assert (words, first, name) == (["-m", "other"], str(process), "__main__")


def test_a_command_gets_its_words(monkeypatch):
    console_script(monkeypatch, f"def main():\n    {TELL.replace(chr(10), chr(10) + '    ')}\n    return 7\n")
    assert main(["run", "told-tool", "--config", "a.yaml"]) == 7
    assert told()[0] == ["told-tool", "--config", "a.yaml"]


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("", 0, ""),
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('the reason')", 1, "the reason"),
        ("open('nowhere')", 1, "FileNotFoundError"),
        ("raise KeyboardInterrupt", 130, "KeyboardInterrupt"),
    ],
)
def test_the_exit_code_and_the_error_are_the_tools(text, code, said, capsys):
    write("tool.py", text)
    assert main(["run", "tool.py"]) == code
    errors = capsys.readouterr().err
    assert said in errors
    assert "revformers run:" not in errors
    assert bool(said) == bool(errors)
    plain = subprocess.run([sys.executable, "tool.py"], check=False).returncode
    assert plain in (code, code - 128 - 4)  # Python ends itself by the signal of an interruption, which is minus 2


def test_the_tool_decides_what_a_termination_does(capsys):
    write("tool.py", "import signal; print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)")
    before = signal.getsignal(signal.SIGTERM)
    assert main(["run", "tool.py"]) == 0
    assert capsys.readouterr().out == "True\n"
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing-here"], "No installed package has a command 'nothing-here'"),
        (["nowhere.py"], "There is no script 'nowhere.py'"),
        (["-m"], "Name a module after -m"),
        (["-m", "nothing_here"], "There is no module 'nothing_here'"),
        (["-m", "nothing_here.inside"], "There is no module 'nothing_here.inside'"),
        (
            ["trl", "sft", "--config", "my file.yaml"],
            "in one process it is: revformers run -m trl.scripts.sft --config 'my file.yaml' and in several: "
            "accelerate launch -m revformers.cli.run -m trl.scripts.sft --config 'my file.yaml'",
        ),
        (["torchrun", "a.py"], "torchrun OPTIONS -m revformers.cli.run SCRIPT.py"),
        (["-m", "torch.distributed.run", "a.py"], "torchrun OPTIONS -m revformers.cli.run SCRIPT.py"),
        (["accelerate", "launch", "a.py"], "accelerate launch OPTIONS -m revformers.cli.run SCRIPT.py"),
        (["deepspeed", "a.py"], "deepspeed OPTIONS --module revformers.cli.run SCRIPT.py"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_sentence(words, message, capsys):
    assert main(["run", *words]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("revformers run: ")
    assert message in errors
    assert errors.count("\n") == 1


def test_without_a_tool_the_help_is_shown(capsys):
    assert main(["run"]) == 2
    assert "usage: revformers run TOOL" in capsys.readouterr().out


@pytest.fixture
def saved(process):
    """A saved reversible model with its tokenizer, and data."""
    model, tokenizer = rf.make_reversible(tiny_model(), rf.BlendedMidpoint("1/16")), tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    for part in (model, tokenizer):
        part.save_pretrained("model")
    write_data(process / "data")
    write_rows(process / "rows.jsonl", [{"prompt": "the cage", "completion": " paper water"}] * 8)
    recipe = {
        "model_name_or_path": "model",
        "datasets": [{"path": "json", "data_files": "rows.jsonl"}],
        "output_dir": "trained",
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
    }
    (process / "sft.yaml").write_text(yaml.safe_dump(recipe))
    return model


def process_of(*words):
    """Run `words` behind the Python of this process, in a process that imports nothing of ours before."""
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, timeout=200)


LM_EVAL = ["--model", "hf", "--model_args", "pretrained=model", "--include_path", str(TASKS), "--tasks", "local_piqa"]
LM_EVAL += ["--metadata", "data_directory=data", "--device", "cpu", "--output_path", "result.json"]
SFT = ["-m", "trl.scripts.sft", "--config", "sft.yaml"]


@pytest.mark.slow
def test_lm_eval_evaluates_a_saved_model(saved):
    done = process_of("-m", "revformers.cli.run", "lm_eval", *LM_EVAL)
    assert done.returncode == 0, done.stderr
    (written,) = Path().glob("result*.json")
    score = json.loads(written.read_text())["results"]["local_piqa"]["acc,none"]
    assert lab_main(["evaluate", "model", "--tasks", "local_piqa", "--data", "data", "--out", "ours.json"]) == 0
    assert score == json.loads(Path("ours.json").read_text())["model"]["scores"][0]["value"]
    alone = process_of("-m", "lm_eval", *LM_EVAL)
    assert alone.returncode != 0
    assert "pip install revformers" in alone.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [[], ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]],
    ids=["alone", "accelerate"],
)
def test_a_yaml_of_trl_trains_a_saved_model(launcher, saved):
    done = process_of(*launcher, "-m", "revformers.cli.run", *SFT)
    assert done.returncode == 0, done.stderr
    trained = rf.from_pretrained("trained")
    assert rf.describe(trained).recurrence == rf.describe(saved).recurrence
    assert "own recurrence" in Path("trained/README.md").read_text()


LOAD = """
import os, sys
from transformers import AutoModelForCausalLM
print(AutoModelForCausalLM.from_pretrained("model"), file=open(sys.argv[1] + os.environ["RANK"], "w"))
"""


@pytest.mark.slow
def test_every_process_of_torchrun_loads_a_saved_model(saved):
    write("load.py", LOAD)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = process_of(*launcher, "-m", "revformers.cli.run", "load.py", "told")
    assert done.returncode == 0, done.stderr
    assert all("reversible: BlendedMidpoint" in Path(name).read_text() for name in ("told0", "told1"))
    assert process_of(*launcher, "load.py", "alone").returncode != 0


@pytest.mark.slow
def test_a_yaml_of_trl_alone_stops_at_a_saved_model(saved):
    alone = process_of(*SFT)
    assert alone.returncode != 0
    assert "pip install revformers" in alone.stderr
