"""TRL: the reference of a reversible model is a copy of it, cards say what it is, and vLLM does not generate for it.

TRL's trainers load their reference model from the path that the trained model was loaded from. That path holds another
network where the model was made reversible, or trained further, in memory.
"""

import copy
import sys
from collections.abc import Callable
from types import MethodType, ModuleType
from typing import Any

import torch
import yaml

from revformers.checkpoints.model_class import owner_of
from revformers.checkpoints.model_config import identity_of
from revformers.integrations import wrap
from revformers.models.state import reversible_stack
from revformers.private_api import TRL_MAKES_REFERENCES, TRL_NAMES_MODELS


class ModelName(str):
    """The name of a reversible model, which also holds the model: TRL asks for a name, and makes references by it.

    Attributes:
        model: None where the configuration that was asked is no longer that of a model.

    """

    model: Any

    def __new__(cls, name: str, model: Any) -> "ModelName":
        """Return `name`, which stands for `model` where a reference is made."""
        self = super().__new__(cls, name)
        self.model = model
        return self

    def __reduce__(self) -> Any:
        """Leave the model behind when the name is copied or stored."""
        return str, (str(self),)


def extend_references(module: ModuleType) -> None:
    """Put the functions of this file around those of `trl.trainer.utils`, wherever TRL has imported them.

    Raises:
        ImportError: for a release of TRL that makes its references in another way.

    """
    if not hasattr(module, TRL_MAKES_REFERENCES) or not hasattr(module, TRL_NAMES_MODELS):
        raise ImportError(
            f"revformers does not know how this release of TRL makes reference models ({module.__name__} has no "
            f"{TRL_MAKES_REFERENCES}); update revformers, or take TRL 1.16."
        )
    for dumper in (yaml.Dumper, yaml.SafeDumper):  # TRL writes the name into the metadata of its cards
        yaml.add_representer(ModelName, lambda writer, name: writer.represent_str(str(name)), Dumper=dumper)
    for function in (TRL_MAKES_REFERENCES, TRL_NAMES_MODELS):  # ours have the names of theirs
        before = getattr(module, function)
        wrap(module, function, f"training.trl:{function}")
        for other in [loaded for name, loaded in sys.modules.items() if name.startswith("trl.")]:
            if vars(other).get(function) is before:
                setattr(other, function, getattr(module, function))


def extend_cards(module: ModuleType) -> None:
    """Add to the cards of TRL's trainers what the network is."""
    trainers = [
        name for name, kind in vars(module).items() if isinstance(kind, type) and "create_model_card" in vars(kind)
    ]
    for name in trainers:
        wrap(module, f"{name}.create_model_card", "training.trainer:create_model_card")


def reference_copy(model: Any, dtype: Any = None) -> Any:
    """Return a copy of a reversible model that trains nothing of its own, for use as a reference.

    Args:
        model: a reversible model of transformers, without adapters.
        dtype: of the copy's weights; None or "auto" keeps that of the model, as quantised weights always do.

    """
    reference = copy.deepcopy(model)
    if isinstance(vars(reference).get("forward"), MethodType):
        # What a trainer before this one put there calls the model that it was made for.
        del reference.forward
    dtype = getattr(torch, dtype) if isinstance(dtype, str) and dtype != "auto" else dtype
    if isinstance(dtype, torch.dtype) and dtype != reference.dtype and not getattr(reference, "is_quantized", False):
        reference = reference.to(dtype)
    return reference


def get_config_model_id(ordinary: Callable[..., Any], config: Any) -> Any:
    """Return the name of a reversible model together with the model."""
    name = ordinary(config)
    return name if identity_of(config) is None else ModelName(name or "", owner_of(config))


def create_model_from_path(
    ordinary: Callable[..., Any], model_id: Any, architecture: Any = None, **options: Any
) -> Any:
    """Make the reference of a reversible model as a copy of it."""
    if isinstance(model_id, ModelName):
        if model_id.model is None:
            raise ValueError(
                "The reference of a reversible model is a copy of it, and this configuration is a copy that "
                "belongs to no model; pass ref_model, or give the model its own configuration back."
            )
        return reference_copy(model_id.model, options.get("dtype"))
    return ordinary(model_id, architecture, **options)


def refuse_vllm(ordinary: Callable[..., Any], generation: Any, model: Any, *others: Any, **options: Any) -> None:
    """Refuse to generate with vLLM for a reversible model."""
    if reversible_stack(model) is not None:
        raise ValueError(
            "use_vllm=True would generate with vLLM's own network, which is the ordinary one, from the weights of "
            "this reversible one; leave it out, and the model generates itself."
        )
    ordinary(generation, model, *others, **options)
