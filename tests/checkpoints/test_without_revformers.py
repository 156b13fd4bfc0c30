"""What someone who never installed revformers gets: no reversible network is taken for an ordinary one."""

import json
import subprocess
import sys

import pytest
from transformers import LlamaForCausalLM, Trainer

from tests.tiny_trainers import arguments, make, ordinary, saved, token_rows, with_adapter

PROGRAM = """
import json, sys
import peft, torch, transformers

ordinary, reversible, adapter, *checkpoints = sys.argv[1:]
model = transformers.LlamaForCausalLM.from_pretrained(ordinary)
rows = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}]


def resume(checkpoint):
    arguments = transformers.TrainingArguments("run", report_to="none", use_cpu=True, max_steps=2, save_strategy="no")
    transformers.Trainer(model, arguments, train_dataset=rows).train(resume_from_checkpoint=checkpoint)


routes = {
    "PeftModel": lambda: peft.PeftModel.from_pretrained(model, adapter),
    "load_adapter": lambda: model.load_adapter(adapter),
    "AutoModel of an adapter": lambda: transformers.AutoModelForCausalLM.from_pretrained(adapter),
    "AutoModel": lambda: transformers.AutoModelForCausalLM.from_pretrained(reversible),
    "AutoModel without a head": lambda: transformers.AutoModel.from_pretrained(reversible),
    "the model's class": lambda: transformers.LlamaForCausalLM.from_pretrained(reversible),
    "the class of its decoder": lambda: transformers.LlamaModel.from_pretrained(reversible),
    "the ordinary configuration": lambda: transformers.AutoModelForCausalLM.from_pretrained(
        reversible, config=transformers.AutoConfig.from_pretrained(ordinary)
    ),
    "resuming": lambda: resume(checkpoints[0]),
    "resuming an ordinary checkpoint": lambda: resume(checkpoints[1]),
}
outcomes = {}
for name, route in routes.items():
    try:
        route()
        outcomes[name] = None
    except Exception as error:
        outcomes[name] = f"{type(error).__name__}: {error}"
assert "revformers" not in sys.modules
print("outcomes", json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What each route raised, in a process that imports transformers and PEFT alone."""
    folder = tmp_path_factory.mktemp("files")
    with_adapter(make("memory", folder)).save_pretrained(folder / "adapter")
    checkpoints = []
    for name, model in (
        ("reversible", make("memory", folder)),
        ("ordinary", LlamaForCausalLM.from_pretrained(ordinary(folder / "ordinary"))),
    ):
        options = {"save_strategy": "steps", "save_steps": 1}
        Trainer(model, arguments(folder / f"{name} run", **options), train_dataset=token_rows()).train()
        checkpoints.append(folder / f"{name} run/run/checkpoint-1")
    files = [folder / "ordinary", saved(folder / "saved"), folder / "adapter", *checkpoints]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, files)], capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("outcomes"))
    return json.loads(line.removeprefix("outcomes"))


@pytest.mark.thorough
@pytest.mark.parametrize(
    "route", ["PeftModel", "load_adapter", "AutoModel of an adapter", "AutoModel", "AutoModel without a head"]
)
def test_loading_stops_with_words_that_say_what_to_install(route, outcomes):
    assert "pip install revformers, then import revformers" in outcomes[route]


@pytest.mark.thorough
@pytest.mark.parametrize("route", ["the model's class", "the class of its decoder"])
def test_the_class_of_the_model_stops_with_words_that_say_what_to_install(route, outcomes):
    assert "pip install revformers, then revformers.from_pretrained" in outcomes[route]


@pytest.mark.parametrize("route", ["the ordinary configuration", "resuming"])
def test_no_route_gives_the_ordinary_network(route, outcomes):
    assert outcomes[route]


def test_what_is_ordinary_goes_on_as_before(outcomes):
    """The control of the tests before: the same program reads what an ordinary model wrote."""
    assert outcomes["resuming an ordinary checkpoint"] is None
