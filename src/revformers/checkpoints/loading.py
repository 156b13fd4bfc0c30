"""Loading a saved reversible model, by name and through transformers' auto classes."""

import os
from typing import Any

import transformers
from transformers import PreTrainedModel

from revformers.checkpoints.load import clear_errors, find_model
from revformers.checkpoints.marks import PREFIX
from revformers.checkpoints.model_class import reversible_class
from revformers.checkpoints.model_config import saved_config


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
