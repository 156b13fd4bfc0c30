"""The description of an adapter's reversible base, saved with the adapter and checked when it is loaded.

A PEFT adapter holds no weights of its base, so one that was trained on a reversible model would silently load on the
ordinary network and produce other logits. The description holds the location of the ordinary weights, the dynamics,
and the update predictors unless the base is itself a saved reversible model.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from revformers.checkpoints.gguf_file import is_gguf
from revformers.checkpoints.hub_files import hub_keywords, local_folder
from revformers.checkpoints.model_config import saved_config
from revformers.checkpoints.model_files import ADAPTER_CONFIG, VARIANT, weight_files
from revformers.errors import ModelFilesError, reason_with_type
from revformers.files import write_text
from revformers.models.discovery import unwrap
from revformers.models.identity import Identity, in_words, read_identity
from revformers.models.parts import predictor_weights, require_reversible, reversible_stack, update_predictors
from revformers.private_api import cached_file_if_any

DESCRIPTION = "reversible.json"
PREDICTORS = "update_predictors.safetensors"
MARK = " on a reversible model (pip install revformers, then import revformers)"


@dataclass(frozen=True)
class AdapterBase:
    """The reversible base of an adapter, as the files of the adapter describe it.

    Attributes:
        identity: its dynamics and the form of its update predictors.
        predictors_sha256: digests of the weights of its update predictors; see `_digests`.
        name: the directory or hub id it was loaded from; None if it was not loaded.
        revision: its revision on the hub; None if not given.
        dtype: of its weights.
        quantization: the quantisation configuration it was loaded with; None without one.
        architecture: the name of its class in transformers.

    """

    identity: Identity
    predictors_sha256: frozenset[str]
    name: str | None
    revision: str | None
    dtype: torch.dtype
    quantization: dict[str, Any] | None
    architecture: str

    @classmethod
    def read(cls, file: Path) -> "AdapterBase":
        """Read the file that `seal_adapter` wrote; raise ModelFilesError if this version cannot read it."""
        values = read_description(file)
        identity = read_identity(values, file)
        try:
            base = values["base"]
            return cls(
                identity=identity,
                predictors_sha256=frozenset(values["predictors_sha256"]),
                name=base["name"],
                revision=base["revision"],
                dtype=getattr(torch, base["dtype"]),
                quantization=base["quantization"],
                architecture=base["architecture"],
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ModelFilesError(
                f"{file} does not describe the base of an adapter in a form that this version of revformers can read "
                f"({reason_with_type(error)}); save the adapter again."
            ) from error


def save_conversion(
    model: nn.Module, directory: Path, base: Mapping[str, Any] | None = None, predictors: bool = True
) -> None:
    """Write the dynamics and the update predictors of a reversible model, but not the weights of the ordinary network.

    Args:
        model: a reversible model, or a PEFT model around one.
        directory: an existing directory.
        base: for an adapter, its base: name, revision, dtype, quantization and architecture.
        predictors: whether to write the weights of the predictors; if false, only their digests are written.

    """
    weights = _own_predictor_weights(model)
    if weights and predictors:
        save_file(weights, directory / PREDICTORS)
    description = require_reversible(model).to_dict()
    if base is not None:
        description |= {"base": dict(base), "predictors_sha256": _digests(weights)}
    (directory / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def seal_adapter(model: nn.Module, directory: Path, revision: str | None = None) -> None:
    """Write the description of an adapter's reversible base, and mark the adapter's type.

    Args:
        model: the base, a reversible model of transformers.
        directory: the directory in which PEFT has saved the adapter.
        revision: the revision of the base on the hub, if any.

    """
    config = unwrap(model).config
    name = config.name_or_path or None
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None and not isinstance(quantization, dict):
        quantization = quantization.to_dict()
    base = {
        "name": name,
        "revision": revision,
        "dtype": str(unwrap(model).dtype).removeprefix("torch."),
        "quantization": quantization,
        "architecture": type(unwrap(model)).__name__.removeprefix("FSDP"),
    }
    save_conversion(model, directory, base, predictors=not _is_saved_with_predictors(name, revision, model))
    path = directory / ADAPTER_CONFIG
    values = json.loads(path.read_text(encoding="utf-8"))
    values["peft_type"] = ordinary_type(values["peft_type"]) + MARK
    if values.get("task_type") is None and base["architecture"] in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        # Given only the class, PEFT's auto class would load the base as the ordinary network.
        values |= {"task_type": "CAUSAL_LM", "auto_mapping": None}
    write_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")


def unseal_adapter(directory: Path) -> None:
    """Remove the description of an older adapter's reversible base, after an ordinary adapter was saved there."""
    if (directory / DESCRIPTION).is_file():
        (directory / PREDICTORS).unlink(missing_ok=True)
        (directory / DESCRIPTION).unlink()


def ordinary_type(peft_type: str) -> str:
    """Return the type of an adapter without our mark, as PEFT knows it."""
    return peft_type.removesuffix(MARK)


def check_base(model: nn.Module, adapter: str | os.PathLike, keywords: Mapping[str, Any]) -> None:
    """Raise ValueError if `adapter` was trained on a network other than `model`.

    Args:
        model: the model that the adapter is loaded into, or a PEFT model around it.
        adapter: a directory or a hub id.
        keywords: keywords of the loading function, with revision, subfolder and the like.

    """
    file, own = find_description(adapter, keywords), reversible_stack(model)
    if file is None:
        if own is not None:
            raise ValueError(
                f"The adapter {adapter} was trained on an ordinary network, and this model is reversible; load it on "
                f"the ordinary model, and call revformers.make_reversible or revformers.convert afterwards."
            )
        return
    base = AdapterBase.read(file)
    differences = base_differences(model, base)
    if differences:
        apart = f"; they differ in {', '.join(differences)}" if own is not None else ""
        raise ValueError(
            f"The adapter {adapter} was trained on {in_words(base.identity)}, and this model is {in_words(own)}{apart}"
            f"; load both with revformers.load_adapter({str(adapter)!r})."
        )


def find_description(adapter: str | os.PathLike, keywords: Mapping[str, Any]) -> Path | None:
    """Return the path of the description of an adapter's reversible base; None for the adapter of an ordinary network.

    Raises:
        ModelFilesError: if the adapter of a reversible network lacks its description, its files contradict each other,
            or its configuration is damaged.

    """
    config, file = (find_file(adapter, name, keywords) for name in (ADAPTER_CONFIG, DESCRIPTION))
    if config is None:
        return None
    peft_type = str(read_description(Path(config)).get("peft_type"))
    if not peft_type.endswith(MARK):
        if file is not None:
            # The file is left from an older adapter in this folder, or someone has rewritten the configuration.
            raise ModelFilesError(
                f"The files of the adapter {adapter} contradict each other: {DESCRIPTION} describes a reversible base, "
                f"but {ADAPTER_CONFIG} an adapter of an ordinary network. If the network is ordinary, delete "
                f'{DESCRIPTION}; otherwise set peft_type to "{peft_type}{MARK}".'
            )
        return None
    if file is None:
        raise ModelFilesError(
            f"The adapter {adapter} was trained on a reversible model and lacks {DESCRIPTION}, which describes it; "
            f"save or download the adapter again."
        )
    return Path(file)


def find_file(adapter: str | os.PathLike, name: str, keywords: Mapping[str, Any]) -> str | None:
    """Return the local path of a file of an adapter, downloaded if necessary; None if the adapter has no such file."""
    return cached_file_if_any(adapter, name, **hub_keywords(keywords))


def base_differences(model: nn.Module, base: AdapterBase) -> list[str]:
    """Return the names of the properties in which a model differs from an adapter's base; an empty list if it is it."""
    own = reversible_stack(model)
    if own is None:
        return ["the recurrence"]
    if differences := base.identity.differences(own):
        return differences
    same = not base.predictors_sha256.isdisjoint(_digests(_own_predictor_weights(model)))
    return [] if same else ["the weights of the update predictors"]


def is_saved_reversible(name: str, keywords: Mapping[str, Any]) -> bool:
    """Whether `name` is a directory or a hub id that holds a reversible model."""
    if is_gguf(name):
        return False
    try:
        saved_config(name, keywords)
    except (OSError, ValueError):
        return False
    return True


def read_description(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file of an adapter or a checkpoint; raise ModelFilesError if it is damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFilesError(f"{path} is damaged (it is not a JSON object); save or download it again.") from error
    if not isinstance(values, dict):
        raise ModelFilesError(f"{path} is damaged (it is not a JSON object); save or download it again.")
    return values


def _is_saved_with_predictors(name: str | None, revision: str | None, model: nn.Module) -> bool:
    """Whether `name` holds a reversible model with the same update predictors as `model`."""
    here = {"revision": revision, "local_files_only": True}  # the model was loaded, so its files are on this machine
    if not name or not is_saved_reversible(name, here):
        return False
    inner = unwrap(model)
    layers = {module: layer for layer, module in enumerate(update_predictors(model))}
    places = {f"{path}.": layers[module] for path, module in inner.named_modules() if module in layers}
    saved = {}
    for file in weight_files(local_folder(name, here), VARIANT):
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118
                path = next((path for path in places if key.startswith(path)), None)
                if path is not None:
                    saved[f"{places[path]}.{key.removeprefix(path)}"] = weights.get_tensor(key)
    return not set(_digests(saved)).isdisjoint(_digests(_own_predictor_weights(model)))


def require_own_predictors(model: nn.Module) -> None:
    """Raise ValueError if an adapter is merged into the update predictors of a model."""
    if any(getattr(module, "merged", False) for one in update_predictors(model) for module in one.modules()):
        raise ValueError(
            "An adapter is merged into the update predictors of this model, but adapters are saved and loaded with the "
            "original predictors; call unmerge_adapter() first, or merge_and_unload() to save the whole model."
        )


def _own_predictor_weights(model: nn.Module) -> dict[str, Tensor]:
    require_own_predictors(model)
    return predictor_weights(model)


def _digests(weights: Mapping[str, Tensor]) -> list[str]:
    """Return two digests of weights; the same weights share at least one of them, whatever dtype they were loaded in.

    Both are of weights in bfloat16. There are two because rounding via float16 gives other numbers than rounding once.
    """
    digests = hashlib.sha256(), hashlib.sha256()
    for name in sorted(weights):
        for digest, dtype in zip(digests, (torch.float32, torch.float16), strict=True):
            value = weights[name].to("cpu").to(dtype).to(torch.bfloat16)
            digest.update(name.encode())
            digest.update(value.flatten().view(torch.uint8).numpy().data)
    return [digest.hexdigest() for digest in digests]
