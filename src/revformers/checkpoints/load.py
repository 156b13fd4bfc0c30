"""Loading of models, tokenizers and configurations, with errors that name the faulty file and the remedy."""

import os
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from revformers.checkpoints.faulty_files import (
    clear_errors,
    missing_config,
    place_without,
    refuse_impossible_sizes,
    refuse_own_code,
    refuse_pickle,
    refuse_weights,
)
from revformers.checkpoints.gguf_file import is_gguf, load_gguf_config, load_gguf_model, load_gguf_tokenizer
from revformers.checkpoints.hub_files import look_up
from revformers.checkpoints.marks import PREFIX
from revformers.checkpoints.model_class import reversible_class
from revformers.checkpoints.model_config import saved_config
from revformers.checkpoints.model_files import CONFIG_NAME, find_model
from revformers.errors import ModelFilesError, NotReversibleError, reason_of, reason_with_type
from revformers.private_api import models_of_auto_class


def from_pretrained(path: str | os.PathLike, **keywords: Any) -> Any:
    """Load a reversible model with the head, the dynamics and the activation policy with which it was saved.

    ``AutoModelForCausalLM.from_pretrained`` and the other auto classes load it too once revformers is imported.

    Args:
        path: a directory or a hub id that `save_pretrained` or `push_to_hub` of a reversible model wrote.
        keywords: keywords of `from_pretrained` of transformers (config, dtype, device_map, quantization_config,
            attn_implementation, revision, subfolder, fields of the configuration, ...), with the same meaning.

    Raises:
        FileNotFoundError: if a local path does not exist, or the hub cannot be asked for the model.
        ModelFilesError: if files are missing, damaged or inconsistent; an OSError and a ValueError.
        ValueError: if the model is ordinary, or its class is neither in transformers nor registered with
            `AutoModelForCausalLM.register`.

    """
    path = find_model(path)
    look_up(path, keywords)
    with clear_errors(path, keywords):
        config = saved_config(path, keywords)
    name = (config.architectures or [""])[0].removeprefix(PREFIX)
    kind = getattr(transformers, name, None) or _registered(config, name)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel) and getattr(kind, "config_class", None)):
        raise ValueError(
            f"{path} holds a model of the class {name!r}, which is neither in transformers nor registered with "
            f"AutoModelForCausalLM; load it with "
            f"revformers.reversible_class({name or 'YourClass'}).from_pretrained({path!r})."
        )
    return reversible_class(kind).from_pretrained(path, **keywords)


def _registered(config: Any, name: str) -> Any:
    """Return the class called `name` that the user registered for the configuration's class; None without."""
    found = (models_of_auto_class(AutoModelForCausalLM) or {}).get(type(config)._ordinary, None)
    return found if getattr(found, "__name__", None) == name else None


def load_causal_lm(name: str | os.PathLike, **keywords: Any) -> Any:
    """Load an ordinary or a reversible causal language model; missing weights are an error.

    Args:
        name: a directory, a hub id or a GGUF file, whose weights are dequantised.
        keywords: keywords of `AutoModelForCausalLM.from_pretrained`.

    Raises:
        FileNotFoundError: if a directory or a file does not exist.
        MissingPackageError: if `name` is a GGUF file and the package gguf is not installed.
        ModelFilesError: if files are missing, damaged or inconsistent; an OSError and a ValueError.

    """
    if is_gguf(name):
        model, found = load_gguf_model(name, AutoModelForCausalLM, **keywords)
        refuse_weights(str(name), "do not have", found["missing_keys"])
        return model
    path = find_model(name)
    look_up(path, keywords)
    keywords = {"trust_remote_code": False} | keywords
    try:
        with refuse_pickle(path, "model"), clear_errors(path, keywords, keywords.get("variant")):
            model, found = AutoModelForCausalLM.from_pretrained(path, **keywords, output_loading_info=True)
    except (ModelFilesError, NotReversibleError):
        raise
    except (OSError, ValueError, StrictDataclassError) as error:
        refuse_own_code(path, error)
        raise ModelFilesError(
            f"{place_without(path)} no causal language model that can be loaded: {reason_of(error)}."
        ) from error
    # transformers would initialise them at random.
    refuse_weights(path, "do not have", found["missing_keys"])
    return model


def load_tokenizer(name: str | os.PathLike, **keywords: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    Args:
        name: a directory, a hub id or a GGUF file.
        keywords: keywords of `AutoTokenizer.from_pretrained`; ignored for a GGUF file.

    Raises:
        FileNotFoundError: if a directory or a file does not exist.
        MissingPackageError: if `name` is a GGUF file and the package gguf is not installed.
        ModelFilesError: if no tokenizer can be loaded; an OSError and a ValueError.

    """
    if is_gguf(name):
        return load_gguf_tokenizer(name)
    path = find_model(name)
    look_up(path, keywords)
    try:
        return AutoTokenizer.from_pretrained(path, **{"trust_remote_code": False} | keywords)
    except (ImportError, ModelFilesError, NotReversibleError):
        raise  # a package that the tokenizer needs, or a sentence of ours
    except Exception as error:  # a damaged tokenizer.json raises KeyError, TypeError or the tokenizers' own Exception
        refuse_own_code(path, error)
        if isinstance(error, OSError | ValueError):
            raise ModelFilesError(f"No tokenizer can be loaded from {path}: {reason_of(error)}.") from error
        raise ModelFilesError(
            f"The tokenizer in {path} is damaged: its tokenizer.json or tokenizer_config.json cannot be read "
            f"({reason_with_type(error)}); save or download it again."
        ) from error


def load_config(name: str | os.PathLike) -> Any:
    """Load the configuration of a model, without its weights.

    Args:
        name: a directory, a hub id, a config.json or a GGUF file.

    Raises:
        FileNotFoundError: if a path does not exist.
        MissingPackageError: if `name` is a GGUF file and the package gguf is not installed.
        ModelFilesError: if no configuration can be read; an OSError and a ValueError.

    """
    if is_gguf(name):
        return load_gguf_config(name)
    file = Path(name).expanduser()
    path = str(file) if file.is_file() else find_model(name)
    if not file.is_file():
        look_up(path, {})
        if Path(path).is_dir() and not (Path(path) / CONFIG_NAME).is_file():
            raise ModelFilesError(missing_config(Path(path)))
    try:
        refuse_impossible_sizes(str(name), PreTrainedConfig.get_config_dict(path)[0])
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (ModelFilesError, NotReversibleError):
        raise
    except Exception as error:  # a family's class checks its values with errors of any kind
        refuse_own_code(path, error)
        raise ModelFilesError(
            f"No configuration of a model can be read from {str(name)!r}: {reason_of(error)}."
        ) from error
