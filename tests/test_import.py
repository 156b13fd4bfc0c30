import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import revformers as rf

EXTRAS = (
    *("accelerate", "bitsandbytes", "datasets", "gguf", "jinja2", "lm_eval", "markupsafe", "matplotlib", "peft"),
    *("psutil", "rich", "torchao", "trl", "tyro", "wrapt"),
)
"""Packages that a plain install lacks, and one that it once needed."""

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
    assert seen == rf._MODULES | {"dynamics": "revformers", "errors": "revformers"}


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
    [("pretrain", "train"), ("finetune", "finetune"), ("verify", "cli"), ("convert", "train"), ("plan", "cli")],
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
