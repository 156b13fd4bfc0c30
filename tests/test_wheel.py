"""What the wheel holds and what it asks for: the library, not the laboratory."""

import re
from email import message_from_string
from pathlib import Path
from zipfile import ZipFile

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    path = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"]))
    with ZipFile(path) as file:
        yield file


@pytest.fixture(scope="module")
def metadata(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return message_from_string(wheel.read(name).decode())


def required(metadata, extra):
    """The names of the packages that an extra asks for, or a plain install."""
    found = set()
    for line in metadata.get_all("Requires-Dist"):
        package, _, condition = line.partition(";")
        if condition.strip() == (f"extra == '{extra}'" if extra else ""):
            found.add(re.match(r"[\w.-]+", package)[0].lower().replace("_", "-"))
    return found


def test_it_holds_the_sources_and_the_license_and_nothing_else(wheel):
    source = ROOT / "src"
    ours = {file.relative_to(source).as_posix() for file in source.glob("revformers/**/*.py")}
    about = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    names = {re.sub(r"^[^/]+\.dist-info/", "", name) for name in wheel.namelist()}
    assert names == ours | {"revformers/py.typed"} | about


def test_a_plain_install_asks_for_pytorch_and_what_transformers_brings(metadata):
    brought = {"huggingface-hub", "numpy", "pyyaml", "tokenizers"}
    assert required(metadata, None) == {"torch", "transformers", "safetensors"} | brought


def test_an_extra_asks_for_what_a_user_does(metadata):
    cli, plot = {"rich", "tyro"}, {"matplotlib"}
    train = cli | {"accelerate", "datasets", "filelock", "psutil"}
    assert {extra: required(metadata, extra) for extra in metadata.get_all("Provides-Extra")} == {
        "cli": cli,
        "train": train,
        "finetune": train | {"jinja2", "peft", "trl"},
        "quantize": {"bitsandbytes", "torchao"},
        "gguf": {"gguf"},
        "plot": plot,
        "analyze": cli | plot | {"scipy"},
        "lab": train | plot | {"scipy"} | {"jinja2", "lm-eval", "markupsafe"},
        **{extra: required(metadata, extra) for extra in ("docs", "lint", "test")},  # for those who work on it
    }
