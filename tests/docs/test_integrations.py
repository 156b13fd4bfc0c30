"""docs/reference/integrations.md lists what is wrapped in other libraries, and its code undoes it."""

import importlib
import inspect
import re

import pytest

import revformers as rf
from revformers import integrations
from tests.docs.pages import PAGES
from tests.tiny_models import tiny

PAGE = PAGES["docs/reference/integrations.md"]


def is_ours(value):
    function = getattr(value, "__func__", value)
    return inspect.isfunction(function) and function.__code__.co_filename == integrations.__file__


def wrapped(module):
    """The functions of a module, and of the classes that it defines, that a function of ours is around."""
    for name, value in vars(module).items():
        if is_ours(value) and value.__module__ == module.__name__:
            yield f"{module.__name__}.{name}"
        if isinstance(value, type) and value.__module__ == module.__name__:
            yield from (
                f"{module.__name__}.{name}.{method}" for method, function in vars(value).items() if is_ours(function)
            )


def test_the_page_lists_every_function_that_is_wrapped():
    pytest.importorskip("trl")
    modules = [importlib.import_module(name) for name in integrations.WRAPPED | integrations.EXTENDED]
    found = [name for module in modules for name in wrapped(module)]
    assert sorted(re.findall(r"^\| `([\w.]+)` \|", PAGE, re.MULTILINE)) == sorted(found)


def test_the_code_of_the_page_undoes_a_change(monkeypatch):
    from transformers import Trainer

    before = vars(Trainer)["_load_best_model"]
    monkeypatch.setattr(Trainer, "_load_best_model", before)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})
    assert is_ours(before)
    assert vars(Trainer)["_load_best_model"] is before.__wrapped__


def test_the_files_of_a_saved_model_and_an_adapter_are_those_of_the_page(tmp_path):
    peft = pytest.importorskip("peft")
    listed = set(re.findall(r"^([\w.]+\.(?:json|md|safetensors))$", PAGE, re.MULTILINE))
    model = rf.make_reversible(tiny("llama"), rf.Midpoint())
    model.save_pretrained(tmp_path / "model")
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear")).save_pretrained(tmp_path / "adapter")
    written = {file.name for file in tmp_path.rglob("*") if file.is_file()} - {"generation_config.json"}
    assert written == listed - {"update_predictors.safetensors"}  # that of a model converted in memory
