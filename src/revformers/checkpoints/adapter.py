"""Loading of adapters that were trained on a reversible network."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from revformers.checkpoints.adapter_base import (
    DESCRIPTION,
    PREDICTORS,
    AdapterBase,
    base_differences,
    find_description,
    find_file,
    is_saved_reversible,
    read_description,
)
from revformers.checkpoints.faulty_files import place_without, refuse_pickle
from revformers.checkpoints.gguf_file import find_gguf, is_gguf, load_gguf_model
from revformers.checkpoints.hub_files import hub_keywords, look_up
from revformers.checkpoints.load import load_causal_lm
from revformers.checkpoints.model_class import become_ordinary, become_reversible, reversible_class
from revformers.checkpoints.model_files import ADAPTER_CONFIG, find_model
from revformers.errors import ModelFilesError, require_package
from revformers.models.attach import add_update_predictors
from revformers.models.discovery import unwrap
from revformers.models.identity import read_identity
from revformers.models.parts import reversible_stack
from revformers.models.states import set_states
from revformers.private_api import is_state_size_mismatch

WEIGHTS = "adapter_model.safetensors"


def apply_conversion(model: nn.Module, directory: Path) -> None:
    """Make the ordinary network of a converted model reversible again, in place, from files of `save_conversion`.

    Raises:
        ModelFilesError: if the files are missing, damaged or of another version.

    """
    description = read_description(directory / DESCRIPTION)
    identity = read_identity(description, directory / DESCRIPTION)
    become_reversible(model, dataclasses.replace(identity, predictor_form=None))
    if identity.predictor_form is None:
        return
    if not (directory / PREDICTORS).is_file():
        raise ModelFilesError(f"{directory} has no {PREDICTORS}; save the adapter again from the model it belongs to.")
    try:
        weights = load_file(directory / PREDICTORS)
    except SafetensorError as error:
        raise ModelFilesError(
            f"{directory / PREDICTORS} is damaged or incomplete ({error}); save or download the adapter again."
        ) from error
    for layer, predictor in enumerate(add_update_predictors(model, identity.predictor_form)):
        predictor.load_state_dict({name: weights[f"{layer}.{name}"] for name in predictor.state_dict()})


def load_adapter(
    directory: str | os.PathLike,
    model: nn.Module | str | os.PathLike | None = None,
    *,
    trainable: bool = False,
    **keywords: Any,
) -> Any:
    """Load an adapter that was trained on a reversible model, together with that model.

    Args:
        directory: an adapter's directory or hub id, written by `save_pretrained` of a PEFT model around a reversible
            one, a trainer or `revformers finetune`.
        model: the base, ordinary or reversible, or its directory, hub id or GGUF file; an ordinary one is made
            reversible in place. None loads the base from its location at training, of which a relative path is one
            from the working directory.
        trainable: whether the adapter can be trained further.
        keywords: the location of the adapter (revision, subfolder, token, ...), and keywords of `from_pretrained` of
            transformers for the base, which override those at training (dtype, device_map, ...).

    Returns:
        A `peft.PeftModel`.

    Raises:
        FileNotFoundError: if there is no adapter, or a local base is no longer at its location.
        MissingPackageError: if the package peft is not installed.
        ModelFilesError: if files are missing, damaged or of another version.
        ValueError: if `model` is another network than the adapter was trained on (an ordinary one stays ordinary), or
            the adapter belongs to an ordinary network.

    """
    peft = require_package("peft", "finetune", "An adapter")
    if find_file(directory, ADAPTER_CONFIG, keywords) is None:
        raise FileNotFoundError(
            f"{place_without(directory)} no adapter ({ADAPTER_CONFIG}); load a whole model with "
            f"revformers.from_pretrained."
        )
    file = find_description(directory, keywords)
    if file is None:
        raise ValueError(
            f"{directory} holds an adapter of an ordinary model; load it with peft.PeftModel.from_pretrained."
        )
    base = AdapterBase.read(file)
    if not isinstance(model, nn.Module):
        if model is not None:
            base = dataclasses.replace(base, name=str(model), revision=None)
        network: Any = _load_base(directory, base, keywords)
        with _clear_errors(directory):
            _resize_embeddings(network, find_file(directory, WEIGHTS, keywords))
        # A saved reversible base may have been given other dynamics in memory, which the description records.
        known = not base_differences(network, base)
        if known:
            set_states(network, base.identity.states)  # those that the adapter was trained with
    else:
        network = model
        known = reversible_stack(network) is not None
    was_ordinary = reversible_stack(network) is None
    try:
        if not known:
            if base.identity.predictor_form is not None:
                find_file(directory, PREDICTORS, keywords)  # downloads the file into the directory of the description
            apply_conversion(network, file.parent)
        with _clear_errors(directory):
            return peft.PeftModel.from_pretrained(network, directory, is_trainable=trainable, **hub_keywords(keywords))
    except Exception as error:
        if was_ordinary:
            become_ordinary(network)
        if not is_state_size_mismatch(error):
            raise
        raise ValueError(
            f"The adapter {directory} does not fit this {type(unwrap(network)).__name__}, whose weights have other "
            f"sizes than those of the base that it was trained on, {base.name or 'a model that was never saved'}."
        ) from error


@contextmanager
def _clear_errors(directory: str | os.PathLike) -> Iterator[None]:
    """Convert errors about the weights of an adapter to ModelFilesError."""
    try:
        with refuse_pickle(directory, "adapter"):
            yield
    except SafetensorError as error:
        raise ModelFilesError(
            f"The weights in {directory} are damaged or incomplete ({error}); save or download the adapter again."
        ) from error


def load_model_or_adapter(name: str | os.PathLike, *, trainable: bool = False) -> Any:
    """Load a causal language model as `load_causal_lm` does, or an adapter of a reversible one with its base.

    Args:
        name: a directory, a hub id or a GGUF file of a model, or the directory of an adapter.
        trainable: whether the weights of an adapter can be trained.

    """
    if (Path(name) / ADAPTER_CONFIG).is_file() and find_description(name, {}) is not None:
        return load_adapter(name, trainable=trainable)
    return load_causal_lm(name)


def _load_base(adapter: str | os.PathLike, base: AdapterBase, keywords: Mapping[str, Any]) -> Any:
    if base.name is None:
        raise FileNotFoundError(
            f"The base of {adapter} was never saved, so it cannot be loaded; pass it as revformers.load_adapter"
            f"({str(adapter)!r}, model)."
        )
    try:
        name = str(find_gguf(base.name)) if is_gguf(base.name) else find_model(base.name)
        if not is_gguf(name):
            look_up(name, keywords)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"The base of {adapter} is not in {base.name}; work in the directory of its training, or pass the base, or "
            f"its path, as revformers.load_adapter({str(adapter)!r}, base)."
        ) from error
    kind = getattr(transformers, base.architecture, None)
    if kind is None:
        raise ValueError(
            f"The base of {adapter} is of the class {base.architecture!r}, which is not in transformers; load it "
            f"and pass it as revformers.load_adapter({str(adapter)!r}, model)."
        )
    # These keywords describe the adapter's location on the hub, not that of its base.
    given = {key: value for key, value in keywords.items() if key not in ("revision", "subfolder")}
    trained = {
        "revision": base.revision,
        "dtype": base.dtype,
        "quantization_config": base.quantization,
    }
    options = {key: value for key, value in trained.items() if value} | given
    if is_gguf(name):
        return load_gguf_model(name, kind, **options)[0]
    kind = reversible_class(kind) if is_saved_reversible(name, options) else kind
    return kind.from_pretrained(name, **options)


def _resize_embeddings(model: Any, weights: str | None) -> None:
    """Resize the vocabulary of a newly loaded base to the embeddings in its adapter's weights, if there are any."""
    if weights is None:
        return
    embeddings = model.get_input_embeddings()
    (place,) = (name for name, module in model.named_modules() if module is embeddings)
    with safe_open(weights, framework="pt") as file:
        for key in (f"base_model.model.{place}.weight", f"base_model.model.{place}.base_layer.weight"):
            if key in file.keys():  # noqa: SIM118
                size = file.get_slice(key).get_shape()[0]
                if size != embeddings.weight.shape[0]:
                    model.resize_token_embeddings(size, mean_resizing=False)
