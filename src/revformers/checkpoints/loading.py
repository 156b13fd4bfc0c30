"""Loading a saved reversible model, by name and through transformers' auto classes."""

import os
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from revformers.checkpoints.load import clear_errors, find_model
from revformers.checkpoints.model_class import reversible_class
from revformers.checkpoints.model_config import MODEL_TYPE, PREFIX, ReversibleConfig, saved_config
from revformers.private_api import models_of_auto_class


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
            f"revformers.checkpoints.model_class.reversible_class({name or 'YourClass'}).from_pretrained({path!r})."
        )
    return reversible_class(kind).from_pretrained(path, **keywords)


class AutoReversibleConfig(ReversibleConfig):
    """The configuration class by which `AutoConfig` reads a saved reversible model."""

    @classmethod
    def from_dict(cls, values: dict[str, Any], **keywords: Any) -> Any:
        """Return the configuration, of the class of its family, whose models the auto classes know from then on."""
        made = super().from_dict(values, **keywords)
        register_models(type(made[0] if isinstance(made, tuple) else made))
        return made


_REGISTERED: set[Any] = set()


def register_models(kind: Any) -> None:
    """Let the auto classes of transformers know the reversible models of a configuration class."""
    if kind in _REGISTERED:
        return
    _REGISTERED.add(kind)
    ordinary = kind._ordinary
    for auto in vars(modeling_auto).values():
        mapping = models_of_auto_class(auto)
        if mapping is None or ordinary not in mapping:
            continue
        models = mapping[ordinary]
        # Where there are several, transformers takes the first unless the configuration names another.
        model = reversible_class(models[0] if isinstance(models, tuple) else models)
        # Some auto classes make the language model inside a composite one, from a part of the configuration.
        if model.config_class is kind:
            auto.register(kind, model, exist_ok=True)


def register() -> None:
    """Make the auto classes of transformers know saved reversible models."""
    AutoConfig.register(MODEL_TYPE, AutoReversibleConfig, exist_ok=True)
