"""Extensions of TRL's trainers: reference models that are copies, model cards, and a refusal of vLLM.

TRL's trainers load their reference model from the path of the trained model. If the model was made reversible or
trained further in memory, that path holds another network.
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
from revformers.models.parts import reversible_stack
from revformers.private_api import TRL_MAKES_REFERENCES, TRL_NAMES_MODELS


class ModelName(str):
    """The name of a reversible model, with the model: TRL asks for a name, and makes references from it.

    Attributes:
        model: the model, or None if the configuration no longer belongs to one.

    """

    model: Any

    def __new__(cls, name: str, model: Any) -> "ModelName":
        """Return `name` with its `model`."""
        self = super().__new__(cls, name)
        self.model = model
        return self

    def __reduce__(self) -> Any:
        """Copy or store the name without the model."""
        return str, (str(self),)


def extend_references(module: ModuleType) -> None:
    """Wrap the functions of `trl.trainer.utils` with those of this file, in every module of TRL that imported them.

    Raises:
        ImportError: for a release of TRL that makes its references in another way.

    """
    if not hasattr(module, TRL_MAKES_REFERENCES) or not hasattr(module, TRL_NAMES_MODELS):
        raise ImportError(
            f"revformers does not know how this release of TRL makes reference models ({module.__name__} has no "
            f"{TRL_MAKES_REFERENCES}); update revformers, or use TRL 1.16."
        )
    for dumper in (yaml.Dumper, yaml.SafeDumper):  # TRL writes the name into the metadata of its cards
        yaml.add_representer(ModelName, lambda writer, name: writer.represent_str(str(name)), Dumper=dumper)
    for function in (TRL_MAKES_REFERENCES, TRL_NAMES_MODELS):  # our functions have the same names
        before = getattr(module, function)
        wrap(module, function, f"training.trl:{function}")
        for name, other in sys.modules.copy().items():
            if name.startswith("trl.") and other is not None and vars(other).get(function) is before:
                setattr(other, function, getattr(module, function))


def extend_cards(module: ModuleType) -> None:
    """Add a description of the network to the cards of TRL's trainers."""
    for name, kind in vars(module).items():
        is_own = isinstance(kind, type) and kind.__module__ == module.__name__
        if is_own and "create_model_card" in vars(kind):
            wrap(module, f"{name}.create_model_card", "training.trainer:create_model_card")


def reference_copy(model: Any, dtype: Any = None) -> Any:
    """Return a copy of a reversible model for use as a reference.

    Args:
        model: a reversible model of transformers, without adapters.
        dtype: the dtype of the copy's weights; None or "auto" keeps the model's. Quantised weights always keep theirs.

    """
    reference = copy.deepcopy(model)
    if isinstance(vars(reference).get("forward"), MethodType):
        # A forward that an earlier trainer put there still calls the original model.
        del reference.forward
    dtype = getattr(torch, dtype) if isinstance(dtype, str) and dtype != "auto" else dtype
    if isinstance(dtype, torch.dtype) and dtype != reference.dtype and not getattr(reference, "is_quantized", False):
        reference = reference.to(dtype)
    return reference


def get_config_model_id(original: Callable[..., Any], config: Any) -> Any:
    """Return the name of a reversible model together with the model."""
    name = original(config)
    return name if identity_of(config) is None else ModelName(name or "", owner_of(config))


def create_model_from_path(
    original: Callable[..., Any], model_id: Any, architecture: Any = None, **options: Any
) -> Any:
    """Return the reference of a reversible model, which is a copy of it."""
    if isinstance(model_id, ModelName):
        if model_id.model is None:
            raise ValueError(
                "The reference of a reversible model is a copy of it, and this configuration is a copy that "
                "belongs to no model; pass ref_model, or restore the model's own configuration."
            )
        return reference_copy(model_id.model, options.get("dtype"))
    return original(model_id, architecture, **options)


def refuse_vllm(original: Callable[..., Any], generation: Any, model: Any, *others: Any, **options: Any) -> None:
    """Refuse to generate with vLLM for a reversible model."""
    if reversible_stack(model) is not None:
        raise ValueError(
            "use_vllm=True would generate with vLLM's own, ordinary network from the weights of this reversible one; "
            "leave it out to generate with the model itself."
        )
    original(generation, model, *others, **options)
