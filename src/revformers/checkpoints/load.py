"""Loading models, tokenizers and configurations, with errors that name the file at fault and say what to do."""

import os
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from revformers.checkpoints.gguf_file import is_gguf, load_gguf_config, load_gguf_model, load_gguf_tokenizer
from revformers.checkpoints.marks import PREFIX
from revformers.checkpoints.model_class import reversible_class
from revformers.checkpoints.model_config import saved_config
from revformers.checkpoints.model_files import clear_errors, find_model, refuse_weights
from revformers.errors import ModelFilesError, NotReversibleError


def from_pretrained(path: str | os.PathLike, **keywords: Any) -> Any:
    """Load a reversible model, with the head, the dynamics and the activation policy it was saved with.

    ``AutoModelForCausalLM.from_pretrained`` and the other auto classes load it too once revformers is imported.

    Args:
        path: a directory or a hub id that `save_pretrained` or `push_to_hub` of a reversible model wrote.
        keywords: what `from_pretrained` of transformers takes (config, dtype, device_map, quantization_config,
            attn_implementation, revision, subfolder, fields of the configuration, ...), with the same meaning.

    Raises:
        FileNotFoundError: where a local path does not exist.
        ModelFilesError: where files are missing, damaged or do not fit each other; an OSError and a ValueError.
        ValueError: where the model there is not a reversible one, or its class is none of transformers' own.

    """
    path = find_model(path)
    with clear_errors(path, keywords):
        architectures = saved_config(path, keywords).architectures or [""]
    name = architectures[0].removeprefix(PREFIX)
    kind = getattr(transformers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel) and getattr(kind, "config_class", None)):
        raise ValueError(
            f"{path} holds a model of the class {name!r}, which is none of transformers'; load it with "
            f"revformers.reversible_class({name or 'YourClass'}).from_pretrained({path!r})."
        )
    return reversible_class(kind).from_pretrained(path, **keywords)


def load_causal_lm(name: str | os.PathLike, **keywords: Any) -> Any:
    """Load an ordinary or a reversible causal language model, whole or not at all.

    Args:
        name: a directory, a hub id or a GGUF file, whose weights are dequantised.
        keywords: what `AutoModelForCausalLM.from_pretrained` takes.

    Raises:
        FileNotFoundError: for a directory or a file that does not exist.
        MissingPackageError: for a GGUF file without the package gguf.
        ModelFilesError: where files are missing, damaged or do not fit each other; an OSError and a ValueError.

    """
    if is_gguf(name):
        model, found = load_gguf_model(name, AutoModelForCausalLM, **keywords)
        refuse_weights(str(name), "do not have", found["missing_keys"])
        return model
    path = find_model(name)
    try:
        with clear_errors(path, keywords, keywords.get("variant")):
            model, found = AutoModelForCausalLM.from_pretrained(path, **keywords, output_loading_info=True)
    except (ModelFilesError, NotReversibleError):
        raise
    except (OSError, ValueError, StrictDataclassError) as error:
        message = " ".join(str(error).split())[:300].rstrip(".")
        place = f"{path} holds" if Path(path).is_dir() else f"There is no directory {path}, and the hub has"
        raise ModelFilesError(f"{place} no causal language model that can be loaded: {message}.") from error
    # transformers would go on with random numbers in their place.
    refuse_weights(path, "do not have", found["missing_keys"])
    return model


def load_tokenizer(name: str | os.PathLike, **keywords: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    Args:
        name: a directory, a hub id or a GGUF file.
        keywords: what `AutoTokenizer.from_pretrained` takes; a GGUF file needs none of them.

    Raises:
        FileNotFoundError: for a directory or a file that does not exist.
        MissingPackageError: for a GGUF file without the package gguf.
        ModelFilesError: where there is no tokenizer that can be loaded; an OSError and a ValueError.

    """
    if is_gguf(name):
        return load_gguf_tokenizer(name)
    path = find_model(name)
    try:
        return AutoTokenizer.from_pretrained(path, **keywords)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise ModelFilesError(
            f"There is no tokenizer in {path!r} here or on the hub that can be loaded: {reason}."
        ) from error


def load_config(name: str | os.PathLike) -> Any:
    """Load the configuration of a model, without its weights.

    Args:
        name: a directory, a hub id, a config.json or a GGUF file.

    Raises:
        FileNotFoundError: for a path to nothing.
        MissingPackageError: for a GGUF file without the package gguf.
        ModelFilesError: where there is no configuration that can be read; an OSError and a ValueError.

    """
    if is_gguf(name):
        return load_gguf_config(name)
    file = Path(name).expanduser()
    path = str(file) if file.is_file() else find_model(name)
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise ModelFilesError(f"No configuration of a model can be read from {str(name)!r}: {reason}.") from error
