"""Loading of models, tokenizers and configurations from GGUF files, llama.cpp's format for quantised weights.

The weights are dequantised once; the result is an ordinary model, which trains and is saved like any other.
"""

import os
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence
from transformers import AutoConfig, GgufConfig, PreTrainedTokenizerFast
from transformers.utils import is_gguf_available

from revformers.checkpoints.model_files import ADAPTER_CONFIG
from revformers.errors import MissingPackageError, ModelFilesError, reason_with_type
from revformers.private_api import gguf_header, gguf_metadata, gguf_text_splits

SPECIAL_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
TOKENS = "tokenizer.ggml.tokens"
SPLIT = "tokenizer.ggml.pre"


def is_gguf(name: str | os.PathLike) -> bool:
    """Whether `name` is the name of a GGUF file."""
    return str(name).lower().endswith(".gguf")


def load_gguf_model(name: str | os.PathLike, kind: Any, **keywords: Any) -> tuple[Any, dict[str, Any]]:
    """Load a model with its weights dequantised.

    Args:
        name: path of the file.
        kind: class, or auto class, of the model.
        keywords: keywords of `kind.from_pretrained`. The default dtype is bfloat16 if the file has quantised weights,
            and the file's dtype otherwise.

    Returns:
        The model, whose name is the path of the file, and the loading info of transformers.

    Raises:
        FileNotFoundError: if there is no such file.
        MissingPackageError: if the package gguf is not installed.
        ModelFilesError: if the file is damaged, or transformers would load another model from it.
        ValueError: if a quantization_config is given, because the weights are dequantised.

    """
    if keywords.get("quantization_config") is not None:
        raise ValueError(
            f"{name} holds quantised weights, which cannot be loaded into another quantisation; load the model without "
            f"one, save it, and load that directory."
        )
    path = find_gguf(name)
    if (path.parent / ADAPTER_CONFIG).is_file():
        raise ModelFilesError(
            f"Beside {path} lies an adapter (adapter_config.json), which transformers would put on the model; move one "
            f"of them into a directory of its own."
        )
    with _clear_errors(path):
        config = keywords.pop("config", None) or _config(path)
        _refuse_scaled_rotation(path, config)
        keywords.setdefault("dtype", _own_type(path))
        model, found = kind.from_pretrained(
            path.parent,
            gguf_file=path.name,
            config=config,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
            **keywords,
        )
    model.config.name_or_path = model.name_or_path = str(path)
    return model, found


def load_gguf_config(name: str | os.PathLike) -> Any:
    """Return the configuration of the model, from the header of the file; raise as `load_gguf_model` does."""
    path = find_gguf(name)
    with _clear_errors(path):
        return _config(path)


def load_gguf_tokenizer(name: str | os.PathLike) -> PreTrainedTokenizerFast:
    """Return the tokenizer, with the special tokens and the chat template of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        MissingPackageError: if the package gguf is not installed.
        ModelFilesError: if the file is damaged, or has no tokenizer that transformers can build.

    """
    path = find_gguf(name)
    with _clear_errors(path):
        metadata, _ = gguf_metadata(str(path), (TOKENS,))
        # An auto class would prefer tokenizer files in the same directory.
        tokenizer = PreTrainedTokenizerFast(gguf_file=path.name, name_or_path=str(path.parent))
        # transformers 5.17 uses the BOS token as the EOS token.
        for role, key in SPECIAL_TOKENS.items():
            index = metadata.get(f"tokenizer.ggml.{key}_token_id")
            setattr(tokenizer, role, None if index is None else metadata[TOKENS][index])
        _set_split(path, tokenizer, metadata)
    tokenizer.name_or_path = str(path)
    return tokenizer


def require_gguf(name: str) -> None:
    """Raise MissingPackageError if the package gguf, which reads `name`, is missing or too old."""
    if not is_gguf_available():
        raise MissingPackageError(f'To read {name} the package gguf is needed: pip install "revformers[gguf]".')


def find_gguf(name: str | os.PathLike) -> Path:
    """Return the absolute path of a readable GGUF file; PEFT would mistake a relative one for a hub id.

    Raises:
        FileNotFoundError: if there is no such file.
        MissingPackageError: if the package gguf is not installed.
        ModelFilesError: if it is a directory, its header cannot be read, or it ends before its last weight.

    """
    path = Path(name).expanduser().absolute()
    if path.is_dir():
        raise ModelFilesError(f"{path} is a directory with the name of a GGUF file; rename it to load it.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(name)!r} to load a model from.")
    require_gguf(path.name)
    with _clear_errors(path):
        gguf_metadata(str(path))
        header = _header(path)
    if header is not None:
        end = max((header.data_start + tensor.offset + tensor.nbytes for tensor in header.tensors), default=0)
        if path.stat().st_size < end:
            raise ModelFilesError(
                f"{path} is incomplete (it has {path.stat().st_size:,} bytes of {end:,}); download or write it again."
            )
    return path


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """Convert the errors that readers of a damaged file raise to ModelFilesError."""
    try:
        yield
    except (FileNotFoundError, ModelFilesError):
        raise
    except (OSError, ValueError, KeyError, IndexError, OverflowError, NotImplementedError, struct.error) as error:
        raise ModelFilesError(
            f"No model can be loaded from {path} ({reason_with_type(error)}): the file is damaged, or transformers "
            f"does not read its kind; download it again, or name another model."
        ) from error


def _config(path: Path) -> Any:
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    config.name_or_path = str(path)
    return config


def _header(path: Path) -> Any:
    """Return the header with the places of the tensors; None if it has types that only the package gguf knows."""
    try:
        return gguf_header(str(path))
    except ValueError:
        return None


def _own_type(path: Path) -> torch.dtype:
    header = _header(path)
    return header.dtype if header is not None and header.dtype is not None else torch.bfloat16


def _refuse_scaled_rotation(path: Path, config: Any) -> None:
    """Raise ModelFilesError if rotary positions are scaled in a way that transformers ignores."""
    metadata, tensors = gguf_metadata(str(path))
    rotation = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    scaling = metadata.get(f"{metadata['general.architecture']}.rope.scaling.type", "none")
    factors = [name for name in tensors if name.startswith(("rope_freqs", "rope_factors"))]
    if rotation.get("rope_type", "default") == "default" and (factors or scaling != "none"):
        raise ModelFilesError(
            f"{path} scales its rotary positions ({factors[0] if factors else scaling}), which transformers leaves out "
            f"when it reads this format: it would be another model. Take the model in safetensors."
        )


def _set_split(path: Path, tokenizer: PreTrainedTokenizerFast, metadata: Mapping[str, Any]) -> None:
    """Set the pre-tokenizer that transformers does not know; warn if we do not know it either."""
    name = metadata.get(SPLIT, "default")
    if name == "smollm":
        split: PreTokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
        tokenizer.backend_tokenizer.pre_tokenizer = split
        return
    known = gguf_text_splits()
    if known is None:  # transformers then chooses by the architecture
        return
    if metadata.get("tokenizer.ggml.model") == "gpt2" and name not in known and name not in ("default", "gpt-2"):
        warnings.warn(
            f"{path} splits text in the way {name!r} before it is tokenized, which transformers does not know: it "
            f"splits as GPT-2 does, and may find other tokens than the model was trained on.",
            stacklevel=3,
        )
