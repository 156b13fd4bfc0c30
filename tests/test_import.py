import ast
import resource
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

import revformers as rf

EXTRAS = (
    *("accelerate", "bitsandbytes", "datasets", "gguf", "jinja2", "lm_eval", "markupsafe", "matplotlib", "peft"),
    *("psutil", "rich", "scipy", "torchao", "trl", "tyro", "wrapt"),
    *("sklearn", "scikit_learn"),
)
"""Packages that a plain install lacks: those of the extras, one that it once needed, and one that lm_eval brings, which
transformers 5.17 imports where it is installed."""

PLAIN = f"""
import sys

class Plain:
    "Finds modules as the other finders do, but for those of the extras."

    def __init__(self, finders):
        self.finders = finders

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS}:
            return None
        found = (finder.find_spec(name, path, target) for finder in self.finders if hasattr(finder, "find_spec"))
        return next((spec for spec in found if spec is not None), None)

    def find_distributions(self, *context):
        finders = (finder for finder in self.finders if hasattr(finder, "find_distributions"))
        found = (distribution for finder in finders for distribution in finder.find_distributions(*context))
        return (one for one in found if one.name.lower().replace("-", "_") not in {EXTRAS})

sys.meta_path[:] = [Plain(list(sys.meta_path))]
"""


def run_in_a_plain_install(code):
    return subprocess.run([sys.executable, "-c", PLAIN + code], capture_output=True, text=True)


def test_importing_the_library_imports_nothing_that_only_some_need():
    code = (
        "import sys, revformers; print([name for name in ('torch', 'transformers', 'datasets', 'peft', 'trl') "
        "if name in sys.modules], 'ReversibleCallback' in revformers.__all__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[-2] == "[] True"


def test_every_public_name_is_there():
    assert all(getattr(rf, name) is not None for name in rf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'reversible_callback'"):
        rf.reversible_callback  # noqa: B018


def test_type_checkers_see_the_public_names():
    """The imports for them, which do not run, are those that do."""
    tree = ast.parse(Path(rf.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {alias.asname: statement.module for statement in block.body for alias in statement.names}
    assert seen == rf._MODULES | dict.fromkeys(("activations", "analysis", "dynamics", "errors"), "revformers")


def test_threads_may_use_public_names_for_the_first_time_at_once(tmp_path, monkeypatch):
    """A package and its module import each other: a thread holds the import lock of the one, another the other's."""
    started, errors = threading.Event(), []
    package = "import time\nstarted()\ntime.sleep(0.2)\nfrom some_package import part\nfirst = part.second\n"
    (tmp_path / "some_package").mkdir()
    (tmp_path / "some_package/__init__.py").write_text(f"from test_events import started\n{package}")
    (tmp_path / "some_package/part.py").write_text("import some_package\nsecond = 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "test_events", SimpleNamespace(started=started.set))
    monkeypatch.setattr(rf, "__all__", ["first", "second"])
    monkeypatch.setitem(rf._MODULES, "first", "some_package")
    monkeypatch.setitem(rf._MODULES, "second", "some_package.part")

    def use_first():
        try:
            assert rf.first == 2
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=use_first)
    thread.start()
    started.wait(60)
    try:
        assert rf.second == 2
    finally:
        thread.join()
        for name in ("first", "second"):
            vars(rf).pop(name, None)
        for name in ("some_package", "some_package.part"):
            sys.modules.pop(name, None)
    assert not errors


def test_no_module_waits_in_its_import_for_names_that_are_imported_when_they_are_used():
    """The thread that imports such a name may itself wait for the module."""
    for file in Path(rf.__file__).parent.rglob("*.py"):
        statements = ast.parse(file.read_text(encoding="utf-8")).body
        imports = (one for one in statements if isinstance(one, ast.ImportFrom) and one.module == "revformers")
        names = {alias.name for one in imports for alias in one.names}
        assert not names.intersection(rf.__all__), file


def test_a_plain_install_has_every_public_name_and_imports_the_library():
    code = """
import importlib, pkgutil, revformers

assert all(getattr(revformers, name) is not None for name in revformers.__all__)
for module in pkgutil.walk_packages(revformers.__path__, "revformers."):
    room = module.name.split(".")[1]
    if room not in ("cli", "console", "data", "training") and not module.name.endswith(".ops.cuda"):
        importlib.import_module(module.name)
"""
    result = run_in_a_plain_install(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("pretrain", "train"),
        ("finetune", "finetune"),
        ("verify", "cli"),
        ("convert", "train"),
        ("plan", "cli"),
        ("analyze", "analyze"),
    ],
)
def test_in_a_plain_install_a_command_says_what_to_install(command, extra):
    result = run_in_a_plain_install(f"import revformers.cli.main; sys.exit(revformers.cli.main.main(['{command}']))")
    sentence = f'the package tyro is not installed; run: pip install "revformers[{extra}]".'
    assert (result.returncode, result.stderr) == (2, f"revformers {command}: {sentence}\n")


def test_what_needs_a_package_of_an_extra_names_both():
    code = """
import torch
import revformers as rf
from revformers.models.quantization import quantization_options

for call in (
    lambda: rf.Budget(0.5).bytes_on(torch.device("cpu")),
    lambda: rf.load_adapter("nowhere"),
    lambda: quantization_options("int8", torch.bfloat16),
    lambda: quantization_options("nf4", torch.bfloat16),
):
    try:
        call()
    except rf.errors.MissingPackageError as error:
        print(str(error).partition(" needs the package ")[2])
"""
    expected = {"psutil": "train", "peft": "finetune", "torchao": "quantize", "bitsandbytes": "quantize"}
    result = run_in_a_plain_install(code)
    lines = [f'{package}: pip install "revformers[{extra}]".' for package, extra in expected.items()]
    assert result.stdout.splitlines() == lines, result.stderr


def seconds(code):
    """The least processor time, of three runs, that a process which runs `code` takes."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_the_library_is_imported_hardly_later_than_transformers():
    assert seconds("import transformers, revformers") - seconds("import transformers") < 0.3


def test_the_help_is_there_within_a_second():
    help_of = "import sys; from revformers.cli.main import main; main(['--help']); assert 'torch' not in sys.modules"
    assert seconds(help_of) - seconds("pass") < 1
