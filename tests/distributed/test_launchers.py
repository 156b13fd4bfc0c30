"""The script and the configurations of docs/guides/scale-out.md, run by two processes.

accelerate shards models on GPUs only. To run its FSDP here, the processes tell it that they are those of two GPUs.
"""

import importlib.util
import math
import os
import re
import runpy
import subprocess
import sys

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed import run
from transformers import AutoTokenizer

import revformers as rf
from revformers.data.tokenizer import train_tokenizer
from tests.distributed.comparing import largest_difference
from tests.docs.pages import PAGES, ROOT, commands
from tests.tiny_models import tiny

pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore")]

SCRIPT = ROOT / "docs/guides/scale_out.py"
STEPS = "3"


def environment_of(name):
    """What `accelerate launch` adds to the environment of the processes."""
    path = ROOT / f"recipes/accelerate/{name}.yaml"
    words = ["--config_file", str(path), str(SCRIPT)]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ""  # what the launcher does next
        found = prepare_deepspeed_cmd_env(arguments)[1]
    else:
        found = prepare_multi_gpu_env(arguments)
    return {key: value for key, value in found.items() if os.environ.get(key) != value}


def on_two_gpus(patch):
    """Let accelerate take the processes for those of two GPUs, with tensors on the CPU."""

    def choose_cpu(state):
        state.device = torch.device("cpu")

    patch.setattr(PartialState, "_prepare_backend", lambda *_, **__: ("gloo", DistributedType.MULTI_GPU))
    patch.setattr(PartialState, "set_device", choose_cpu)
    patch.delenv("ACCELERATE_USE_CPU")


def give(patch, arguments, **options):
    """Give the script its arguments, and an optimizer that does not amplify rounding as AdamW does."""

    import transformers  # here, because an import of accelerate may replace the module

    def with_options(*positional, **keywords):
        return original(*positional, **keywords | {"optim": "sgd", "learning_rate": 0.1} | options)

    original = transformers.TrainingArguments
    patch.setattr(transformers, "TrainingArguments", with_options)
    patch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    patch.setattr(sys, "argv", [str(SCRIPT), *arguments])


def run_script(rank, environment, engine, arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", os.environ.copy())
        for name, value in environment.items():
            patch.setenv(name, value)
        if engine == "MULTI_CPU":
            give(patch, arguments)
        else:
            on_two_gpus(patch)
            give(patch, arguments, use_cpu=False)
        AcceleratorState._reset_state(True)
        runpy.run_path(str(SCRIPT), run_name="__main__")
        found = AcceleratorState().distributed_type.value
        AcceleratorState._reset_state(True)
        return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with models of two policies, one text, and what one process makes of it."""
    folder = tmp_path_factory.mktemp("launched")
    (folder / "text.txt").write_text(PAGES["README.md"], encoding="utf-8")
    tokenizer = train_tokenizer([PAGES["README.md"]], 300)
    for policy in ("store", "rebuild"):
        model = rf.make_reversible(tiny("llama", vocab_size=300), rf.BlendedMidpoint("1/4"), policy)
        model.save_pretrained(folder / policy)
        tokenizer.save_pretrained(folder / policy)
    return folder


def weights(path):
    return rf.from_pretrained(path).state_dict()


def words_of(folder, policy, output, precision="float32"):
    return [str(folder / policy), str(folder / "text.txt"), str(folder / output), STEPS, precision]


def trained(pair, folder, name, engine, precision):
    """The weights that two processes make of the models, by policy.

    Args:
        pair: the processes.
        folder: of the models.
        name: of the configuration.
        engine: which distributed type of accelerate they must find.
        precision: "float32" or "bf16".

    """
    found = []
    for policy in ("store", "rebuild"):
        words = words_of(folder, policy, "out", precision)
        engines = pair.run(run_script, environment_of(name), engine, words)
        assert engines == [engine, engine]
        found.append(weights(folder / "out"))
    return found


@pytest.fixture(scope="module")
def alone(folder):
    """The weights that one process makes of the stored model from the same batches."""
    with pytest.MonkeyPatch.context() as patch:
        give(patch, words_of(folder, "store", "alone"), per_device_train_batch_size=2, use_cpu=True)
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return weights(folder / "alone")


NEEDS_DEEPSPEED = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
CONFIGURATIONS = [
    ("ddp", "MULTI_CPU"),
    ("fsdp2", "FSDP"),
    pytest.param("zero3", "DEEPSPEED", marks=NEEDS_DEEPSPEED),
]


@pytest.mark.parametrize(("name", "engine"), CONFIGURATIONS)
def test_training_is_that_of_one_process(pair, folder, alone, name, engine):
    stored, rebuilt = trained(pair, folder, name, engine, "float32")
    assert largest_difference(stored, rebuilt) == 0
    assert largest_difference(weights(folder / "store"), alone) > 1e-5
    assert largest_difference(stored, alone) < 1e-6


@pytest.mark.parametrize(("name", "engine"), CONFIGURATIONS)
def test_half_precision_gives_the_same_weights_rebuilt_and_stored(pair, folder, name, engine):
    assert largest_difference(*trained(pair, folder, name, engine, "bf16")) == 0


NAMES = {one.values[0] if hasattr(one, "values") else one[0] for one in CONFIGURATIONS}


def test_every_configuration_is_run():
    assert {path.stem for path in (ROOT / "recipes/accelerate").iterdir()} == NAMES


PAGE = "docs/guides/scale-out.md"


@pytest.mark.parametrize("words", commands(PAGE), ids=" ".join)
def test_the_commands_of_the_page_are_those_that_run(words):
    if words[0] == "torchrun":
        arguments = run.get_args_parser().parse_args(words[1:])
        script, given = arguments.training_script, arguments.training_script_args
    else:
        arguments = launch_command_parser().parse_args(words[2:])
        assert arguments.config_file in {f"recipes/accelerate/{name}.yaml" for name in NAMES}
        script, given = arguments.training_script, arguments.training_script_args
    if script == "revformers.cli.main":  # test_runs.py runs these
        assert given[0] in ("pretrain", "finetune")
        assert (ROOT / given[1]).is_file()
    else:
        assert (ROOT / script, given) == (SCRIPT, ["reversible-model", "text.txt", "trained"])


def test_torchrun_runs_the_command_of_the_page(folder, alone):
    """In processes of its own; it ends where one process ends."""
    (words,) = (words for words in commands(PAGE) if words[0] == "torchrun" and words[3] == "docs/guides/scale_out.py")
    (folder / "docs").symlink_to(ROOT / "docs")
    (folder / "reversible-model").symlink_to(folder / "rebuild")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words[1:], STEPS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("ACCELERATE_USE_CPU", None)  # as in a shell without a GPU
    ended = subprocess.run(launcher, cwd=folder, env=environment, check=True, capture_output=True, text=True)
    ids = AutoTokenizer.from_pretrained(folder / "rebuild")((folder / "text.txt").read_text(encoding="utf-8"))
    # Two processes that train alone would report half of this, and both of them.
    (epoch,) = re.findall(r"'epoch': '?([\d.]+)", ended.stdout)
    steps_of_an_epoch = math.ceil(len(ids["input_ids"]) // 64 / 2)
    assert float(epoch) == pytest.approx(int(STEPS) / steps_of_an_epoch, rel=1e-3)
    # AdamW, the script's own optimizer, moves a weight by at most about its learning rate in a step.
    assert 0 < largest_difference(weights(folder / "rebuild"), weights(folder / "trained")) < 1e-3
