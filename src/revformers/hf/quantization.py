"""Quantised weights for the frozen part of a model under an adapter."""

from typing import Any

import torch


def quantization_options(name: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return the keywords of `from_pretrained` that quantise a model while it is loaded; none for ``"none"``.

    Args:
        name: none, int8 (torchao, weight only, a scale a row) or nf4 (bitsandbytes, 4 bits, the scales quantised too).
        dtype: what nf4 computes in.

    Raises:
        ImportError: where a package is missing; the message names it.
        ValueError: for nf4 without a CUDA device, or an unknown name.

    """
    if name == "none":
        return {}
    if name == "int8":
        try:
            from torchao.quantization import Int8WeightOnlyConfig
        except ImportError as error:
            raise ImportError('Weights in int8 need torchao; pip install "torchao>=0.12".') from error
        from transformers import TorchAoConfig

        return {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
    if name == "nf4":
        if not torch.cuda.is_available():
            raise ValueError("Weights in nf4 need a CUDA device, and there is none; use int8 or none.")
        try:
            import bitsandbytes  # noqa: F401
        except ImportError as error:
            raise ImportError("Weights in nf4 need bitsandbytes; pip install bitsandbytes.") from error
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
