"""Quantisation of the frozen weights of a model that is trained with an adapter."""

from typing import Any

import torch
from torch import nn

from revformers.errors import require_package
from revformers.private_api import keep_gradients_of_nf4


def quantization_options(name: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return the keywords of `from_pretrained` that quantise a model while it is loaded; empty for ``"none"``.

    Args:
        name: none, int8 (torchao, weight only, one scale per row) or nf4 (bitsandbytes, 4 bits, quantised scales).
        dtype: the dtype in which nf4 computes.

    Raises:
        MissingPackageError: if the package torchao, or bitsandbytes, is not installed.
        ValueError: if the name is unknown.

    """
    if name == "none":
        return {}
    if name == "int8":
        torchao = require_package("torchao.quantization", "quantize", "int8")
        from transformers import TorchAoConfig

        return {"quantization_config": TorchAoConfig(torchao.Int8WeightOnlyConfig())}
    if name == "nf4":
        require_package("bitsandbytes", "quantize", "nf4")
        from transformers import BitsAndBytesConfig

        return {
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
        }
    raise ValueError(f"There is no quantization {name!r}; use none, int8 or nf4.")


def keep_trainable(model: nn.Module) -> None:
    """Keep the nf4 weights of a model in the layout that supports gradients, in place; no effect on other models.

    On CPUs with AVX512-BF16, bitsandbytes repacks the weights of a layer that is evaluated outside of training, for a
    kernel without a gradient: training after the first evaluation would get wrong gradients, without an error.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            keep_gradients_of_nf4(module)
