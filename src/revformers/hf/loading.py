"""Loading a saved reversible model, by name and through transformers' auto classes."""

import os
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from revformers import dynamics as dynamics_module
from revformers.dynamics.base import Dynamics
from revformers.errors import ModelFilesError
from revformers.hf.hint import without_hint
from revformers.hf.pretrained import INDEX, clear_errors, find_model, local_folder, refuse_weights, weight_files
from revformers.hf.provenance import Provenance
from revformers.hf.reversible import add_update_predictors, make_reversible
from revformers.hf.saving import CONFIG_NAME, KEY, MODEL_TYPE
from revformers.hf.state import require_reversible
from revformers.update_predictor import PredictorForm

PREDICTOR = ".update_predictor."


@without_hint()
def from_pretrained(path: str | os.PathLike, **keywords: Any) -> Any:
    """Load a reversible model, with the dynamics and the activation policy it was saved with.

    Args:
        path: a directory or a hub id that `save_pretrained` or `push_to_hub` of a reversible model wrote.
        keywords: what `AutoModelForCausalLM.from_pretrained` takes (dtype, device_map, attn_implementation, ...).

    Raises:
        FileNotFoundError: where a local path does not exist.
        ModelFilesError: where files are missing, damaged or do not fit each other; an OSError and a ValueError.
        ValueError: where the model there is not a reversible one.

    """
    path = find_model(path)
    with_info = keywords.pop("output_loading_info", False)
    keywords.pop("config", None)
    names = ("revision", "token", "cache_dir", "subfolder", "local_files_only")
    hub: dict[str, Any] = {key: keywords[key] for key in names if key in keywords}
    with clear_errors(path, keywords):
        values, _ = PreTrainedConfig.get_config_dict(path, **hub)
        if KEY not in values:
            raise ValueError(
                f"{path} holds an ordinary model; load it with transformers and call revformers.make_reversible(model, "
                f"dynamics)."
            )
    config, dynamics, activations, form, provenance = _read(path, values)
    with clear_errors(path, keywords):
        model, info = _load_without_predictors(path, config, keywords)
        make_reversible(model, dynamics, activations)
        if form is not None:
            add_update_predictors(model, form)
            _load_predictors(model, path, keywords)
    require_reversible(model).provenance = provenance
    # The path names the reversible model itself: adapters may call it their base.
    model.name_or_path = model.config.name_or_path
    return (model, info) if with_info else model


def _read(
    path: str, values: dict[str, Any]
) -> tuple[PreTrainedConfig, Dynamics, str, PredictorForm | None, Provenance | None]:
    """Return the ordinary config, the dynamics, the policy, the form of update predictors, the provenance."""
    values = dict(values)
    description = values.pop(KEY)
    values.pop("transformers_weights", None)
    try:
        values["model_type"] = description["ordinary_model_type"]
        config = CONFIG_MAPPING[values["model_type"]].from_dict(values)
        provenance = Provenance.from_dict(description["provenance"]) if "provenance" in description else None
        dynamics = dynamics_module.from_dict(description["dynamics"])
        predictors = description["update_predictors"]
        form = None if predictors is None else PredictorForm(**predictors)
        return config, dynamics, description["activations"], form, provenance
    except (AttributeError, KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise ModelFilesError(
            f"The {CONFIG_NAME} of {path} describes no reversible model that this version of revformers or "
            f"transformers can read ({type(error).__name__}: {error}); update both, or save the model again."
        ) from error


def _load_without_predictors(path: str, config: PreTrainedConfig, keywords: dict[str, Any]) -> tuple[Any, Any]:
    """Load the ordinary part; transformers does not know the predictors' weights and need not warn of them."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(path, **keywords, config=config, output_loading_info=True)
    finally:
        logging.set_verbosity(verbosity)
    info["unexpected_keys"] = {name for name in info["unexpected_keys"] if PREDICTOR not in name}
    refuse_weights(path, "do not have", info["missing_keys"])
    refuse_weights(path, "have, where nothing takes it,", info["unexpected_keys"])
    return model, info


def _load_predictors(model: nn.Module, path: str, keywords: dict[str, Any]) -> None:
    """Read the update predictors' weights from the safetensors files of a local or a hub model."""
    folder = local_folder(path, keywords, allow_patterns=["*.safetensors", f"*{INDEX}"])
    wanted = {name: value for name, value in model.state_dict().items() if PREDICTOR in name}
    wrong = []
    for file in weight_files(folder, keywords.get("variant")):
        with safe_open(file, framework="pt") as weights:
            for name in wanted.keys() & set(weights.keys()):
                stored, parameter = weights.get_tensor(name), wanted.pop(name)
                if stored.shape == parameter.shape:
                    parameter.copy_(stored)
                else:
                    wrong.append(name)
    refuse_weights(path, "do not have", wanted)
    refuse_weights(path, "have, in another size,", wrong)


class ReversibleConfig(PreTrainedConfig):
    """What `AutoConfig` reads of a saved reversible model; `from_pretrained` reads the rest itself."""

    model_type = MODEL_TYPE


class ReversibleCausalLM:
    """What `AutoModelForCausalLM` loads a saved reversible model with once revformers is imported."""

    config_class = ReversibleConfig

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike, *_: Any, **keywords: Any) -> Any:
        """Load the model with `revformers.from_pretrained`."""
        return from_pretrained(path, **keywords)


def register() -> None:
    """Make `AutoModelForCausalLM.from_pretrained` know saved reversible models."""
    AutoConfig.register(MODEL_TYPE, ReversibleConfig, exist_ok=True)
    AutoModelForCausalLM.register(ReversibleConfig, ReversibleCausalLM, exist_ok=True)
