"""Every command and every block of README and docs runs, on smaller networks than those that the pages speak of."""

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

import revformers as rf
from lab.__main__ import main as lab_main
from lab.bench import process
from revformers.cli.main import main
from tests.docs.pages import PAGES, ROOT, blocks, commands, make_run_commands
from tests.lab.bench.example import measure_here

OWN_TEST = {
    "docs/guides/trainers.md": "test_trainers.py",
    "docs/guides/fine-tune.md": "test_fine_tune.py",
    "docs/reference/integrations.md": "test_integrations.py",
    "docs/extending/add-a-dynamics.md": "test_extending.py",
    "docs/extending/add-a-policy.md": "test_extending.py",
    "docs/extending/add-a-family.md": "test_extending.py",
    "docs/tutorial.md": "test_tutorial.py",
}
"""Pages whose Python has a test of its own, which also checks where it ends."""

LAUNCHERS = {"accelerate", "torchrun"}
SMALLER = {
    "compare": "--dynamics_steps 2 --arm_steps 2 --depths 1 2",
    "convert": "--length 32 --sequences 4 --held_out 2",
    "finetune": "--data.source text.txt --data.subset none --data.validation_split none --data.block_length 32 "
    "--data.validation_blocks 2 --conversion.sequences 4 --training.max_steps 2 "
    "--training.eval_steps 2 --training.arguments.use_cpu true",
    "evaluate": "--limit 2",
    "plan": "--memory 4MiB --sequence_length 64",
    "bench": "--help",
}
"""Options that are added to a command so that its test takes seconds."""

NAMES = {"HuggingFaceTB/SmolLM2-135M": "pretrained"}
"""Hub ids on the pages, and the local model that is used instead."""


def run_command(words):
    """Run one command of a page in this process, made smaller."""
    if words[:2] == ["python", "-m"]:
        assert words[2] == "lab", f"no test runs python -m {words[2]}"
        entry, words = lab_main, words[3:]
    else:
        assert words[0] == "revformers", f"no test runs {words[0]}"
        entry, words = main, words[1:]
    words = ["cpu" if word == "cuda" else word for word in words]
    smaller = SMALLER.get(" ".join(words[:2]), SMALLER.get(words[0], ""))
    assert entry([*words, *smaller.split()]) == 0, words


def check_make(words):
    for target in words[1:]:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def check_install(words):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (target,) = words[2:]
    named = re.fullmatch(r"\.(?:\[([\w,]+)\])?", target)
    assert named
    assert set(filter(None, (named[1] or "").split(","))) <= extras.keys()


def check_module(words, monkeypatch, capsys):
    """The scripts of the laboratory have tests of their own; here their options are looked up."""
    monkeypatch.setattr(sys, "argv", [words[2], "--help"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        runpy.run_module(words[2], run_name="__main__")
    shown = capsys.readouterr().out
    assert all(option in shown for option in words[3:] if option.startswith("--"))


def check_pytest(words):
    """Only that there are such tests: they need what their mark says."""
    arguments = [word for word in words[3:] if not re.fullmatch(r"-n|\d+", word)]
    found = subprocess.run(
        [sys.executable, *words[1:3], "--collect-only", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.thorough
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_the_commands_of_a_page_run(page, workspace, monkeypatch, capsys):
    monkeypatch.setattr(process, "measure_peak_memory", measure_here)
    for words in commands(page):
        if words[0] == "make":
            check_make(words)
        elif words[:2] == ["pip", "install"]:
            check_install(words)
        elif words[:3] == ["python", "-m", "pytest"]:
            check_pytest(words)
        elif words[:2] == ["python", "-m"] and words[2].startswith("lab."):
            check_module(words, monkeypatch, capsys)
        elif words[:3] == ["revformers", "finetune", "recipes/lora-instructions.yaml"]:
            assert page in OWN_TEST
        elif words[0] in LAUNCHERS or words[:2] == ["revformers", "run"]:
            assert page in ("docs/guides/trainers.md", "docs/guides/scale-out.md"), "tests/cli/test_run.py runs these"
        else:
            run_command(words)
    if page == "docs/guides/from-scratch.md":
        assert "<svg" in (workspace / "report.html").read_text(encoding="utf-8")


def test_make_run_runs_the_commands_of_the_guide():
    """Their test is that of the guide, from whose commands they differ by --overwrite alone."""
    run = [[word for word in words if word != "--overwrite"] for words in make_run_commands()]
    assert run == commands("docs/guides/from-scratch.md")


@pytest.fixture
def one_process(tmp_path):
    """A group of one process, for pages that shard."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python") and page not in OWN_TEST])
def test_the_python_of_a_page_runs(page, workspace, one_process):
    torch.manual_seed(0)
    ids = torch.randint(300, (2, 32))
    model = AutoModelForCausalLM.from_pretrained("pretrained").train()
    names = {"model": model, "batch": {"input_ids": ids, "labels": ids}}
    code = "\n".join(blocks(page, "python"))
    for here, there in NAMES.items():
        code = code.replace(here, there)
    exec(compile(code, page, "exec"), names)


@pytest.mark.parametrize("are_large", [False, True])
def test_the_readme_proves_its_gradients_and_is_short(are_large, workspace, capsys):
    """Also where a value exceeds the range that states have by default, as one token of SmolLM2 does in bfloat16."""
    (block,) = blocks("README.md", "python")
    for here, there in NAMES.items():
        block = block.replace(here, there)
    if are_large:
        model = AutoModelForCausalLM.from_pretrained("pretrained").bfloat16()
        with torch.no_grad():
            model.get_input_embeddings().weight[:, 0] = 36_000.0
        model.save_pretrained("pretrained")
        with pytest.raises(rf.StateRangeError, match="choose_states"):
            exec(block.replace("rf.choose_states", "#"), {})
    exec(block, {})
    assert "to the bit" in capsys.readouterr().out
    assert (workspace / "reversible-model/model.reversible.safetensors").is_file()
    assert len([line for line in block.splitlines() if line]) <= 10
    assert len(PAGES["README.md"].splitlines()) < 100


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")])
def test_the_recipes_of_a_page_are_read(page):
    for block in blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(block), dict)


def test_the_recipe_of_the_guide_is_a_recipe(tmp_path):
    from revformers.training.recipe import load_recipe

    (block,) = blocks("docs/guides/from-scratch.md", "yaml")
    path = tmp_path / "recipe.yaml"
    path.write_text(block)
    shown, shipped = load_recipe(path), load_recipe(ROOT / "recipes/quickstart.yaml")
    assert shown.dynamics == shipped.dynamics
    for part in ("max_steps", "learning_rate"):
        assert getattr(shown.training, part) == getattr(shipped.training, part)


def test_pages_with_a_test_of_their_own_have_it():
    assert all((Path(__file__).parent / test).is_file() for test in OWN_TEST.values())
    assert OWN_TEST.keys() <= PAGES.keys()


def test_files_that_a_page_names_exist():
    for page, text in PAGES.items():
        for path in re.findall(r"`((?:src|lab|tests|recipes|docs)/[\w./-]+)`", text):
            assert (ROOT / path).exists(), f"{page}: {path}"


def test_the_readme_installs_every_extra_for_users():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    install = next(block for block in blocks("README.md", "bash") if "pip install" in block)
    for_users = extras.keys() - {"test", "docs", "lint", "cli", "plot", "analyze"}  # the last three are parts of lab
    assert [extra for extra in sorted(for_users) if not re.search(rf"\b{extra}\b", install)] == []


def test_the_readme_shows_the_command_line():
    shown = {words[1] for words in commands("README.md") if words[0] == "revformers"}
    assert shown == {"plan", "convert", "verify", "finetune"}
