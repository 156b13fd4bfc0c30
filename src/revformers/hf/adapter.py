"""What a conversion did to a model, in files of its own, and adapters that cannot be loaded without it.

A PEFT adapter holds no weights of its base, so one that was trained on a converted model would load on the ordinary
network, silently, with other logits. Here it is saved with everything that makes its base reversible again: where the
ordinary weights are, the dynamics, and the update predictors. Its adapter_config.json has a type that PEFT does not
know, which stops at the words that say how to load it: with `load_adapter`.
"""

import json
import shutil
import warnings
from importlib.metadata import version
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from revformers import dynamics as dynamics_module
from revformers.hf.hint import without_hint
from revformers.hf.pretrained import load_causal_lm
from revformers.hf.quantization import quantization_options
from revformers.hf.reversible import add_update_predictors, make_reversible
from revformers.hf.state import predictor_form, require_reversible, update_predictors
from revformers.update_predictor import PredictorForm

DESCRIPTION = "reversible.json"
PREDICTORS = "update_predictors.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_TYPE = "LORA on a reversible model (pip install revformers, then revformers.hf.adapter.load_adapter)"


def save_conversion(model: nn.Module, directory: Path, base: dict[str, str | None]) -> None:
    """Write what makes the ordinary network of a reversible model reversible: its dynamics and update predictors.

    Args:
        model: a reversible model, without an adapter.
        directory: an existing directory.
        base: where the ordinary weights are: name, revision, dtype and quantization.

    """
    reversible, form = require_reversible(model), predictor_form(model)
    if form is not None:
        weights = {
            f"{layer}.{name}": value.contiguous()
            for layer, predictor in enumerate(update_predictors(model))
            for name, value in predictor.state_dict().items()
        }
        save_file(weights, directory / PREDICTORS)
    form = predictor_form(model)
    description = {
        "base": base,
        "dynamics": reversible.dynamics.to_dict(),
        "activations": reversible.activations,
        "update_predictors": None if form is None else form.to_dict(),
        "version": version("revformers"),
    }
    (directory / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


@without_hint()
def apply_conversion(model: nn.Module, directory: Path) -> None:
    """Make the model that `save_conversion` was told about reversible again, in place, as it was to the bit."""
    description = json.loads((directory / DESCRIPTION).read_text(encoding="utf-8"))
    make_reversible(model, dynamics_module.from_dict(description["dynamics"]), description["activations"])
    if description["update_predictors"] is None:
        return
    form = PredictorForm(**description["update_predictors"])
    weights = load_file(directory / PREDICTORS)
    for layer, predictor in enumerate(add_update_predictors(model, form)):
        predictor.load_state_dict({name: weights[f"{layer}.{name}"] for name in predictor.state_dict()})


def describe_base(adapter: Any, conversion: Path) -> None:
    """Have `adapter`, a PEFT model around a reversible one, save itself with the files in `conversion`, and marked.

    Args:
        adapter: the PEFT model; its `save_pretrained` is replaced on the object.
        conversion: a directory that `save_conversion` filled.

    """

    def save_pretrained(model: Any, save_directory: str, *arguments: Any, **keywords: Any) -> None:
        with warnings.catch_warnings():
            # PEFT asks the hub for the config of the base, to find new words in its vocabulary; there are none.
            warnings.filterwarnings("ignore", "Could not find a config file")
            type(model).save_pretrained(model, save_directory, *arguments, **keywords)
        for name in (DESCRIPTION, PREDICTORS):
            if (conversion / name).is_file() and conversion.resolve() != Path(save_directory).resolve():
                shutil.copyfile(conversion / name, Path(save_directory) / name)
        path = Path(save_directory) / ADAPTER_CONFIG
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(config | {"peft_type": ADAPTER_TYPE}, indent=2) + "\n", encoding="utf-8")

    adapter.save_pretrained = MethodType(save_pretrained, adapter)


def load_adapter(directory: str | Path, *, trainable: bool = False, **keywords: Any) -> Any:
    """Load an adapter that was saved beside its conversion, on its base, which is loaded and made reversible first.

    Args:
        directory: what `revformers finetune` wrote to `adapter`, or a checkpoint of it.
        trainable: whether the adapter is to be trained further.
        keywords: what `AutoModelForCausalLM.from_pretrained` takes, in the place of what the base was trained with.

    Returns:
        A `peft.PeftModel`.

    Raises:
        FileNotFoundError: where there is no such adapter, or a local base is no longer where it was.

    """
    from peft import LoraConfig, PeftModel

    directory = Path(directory)
    if not (directory / DESCRIPTION).is_file() or not (directory / ADAPTER_CONFIG).is_file():
        raise FileNotFoundError(f"{directory} holds no adapter with the conversion of its base ({DESCRIPTION}).")
    base = json.loads((directory / DESCRIPTION).read_text(encoding="utf-8"))["base"]
    dtype = getattr(torch, base["dtype"])
    options = {"revision": base["revision"], "dtype": dtype, **quantization_options(base["quantization"], dtype)}
    model = load_causal_lm(base["name"], **{name: value for name, value in options.items() if value} | keywords)
    apply_conversion(model, directory)
    config = json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    config = LoraConfig.from_peft_type(**config | {"peft_type": "LORA"})
    adapter = PeftModel.from_pretrained(model, directory, config=config, is_trainable=trainable)
    describe_base(adapter, directory)
    return adapter
