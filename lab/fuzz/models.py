"""Builds the models and batches of a set-up: the ordinary model, and the same model with reversible dynamics."""

import contextlib
import dataclasses
import random
from collections.abc import Iterator
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn

from lab.fuzz.case import OF_ANY_WIDTH, Case
from lab.private_api import run_experts_in_turn, set_attention
from lab.tiny import perturb_, tiny_model
from revformers.activations import Budget
from revformers.activations.budget.budget import Recompute
from revformers.dynamics import from_dict
from revformers.head.loss import HeadLoss, set_head_loss
from revformers.models.attach import add_update_predictors, set_activations
from revformers.models.budget import smallest_budget
from revformers.models.compile import compile_layers
from revformers.models.discovery import find_stack, unwrap
from revformers.models.tiles import set_mlp_tiles
from revformers.models.update_predictor import PredictorForm
from revformers.reversible import make_reversible

_DEPTHS = {"num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"}
_POSITIONS = {"max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions"}
_MOST_TOKENS = 256


class ImpossibleError(Exception):
    """Transformers, PEFT or this library does not support the set-up: there is no model to run."""


@contextlib.contextmanager
def _impossible_where(kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kind as error:
        raise ImpossibleError(f"{type(error).__name__}: {error}") from error


def ordinary_model(case: Case, device: torch.device) -> Any:
    """Return the ordinary model of a set-up with its adapters, tiles and head, compiled if the case says so.

    Raises:
        ImpossibleError: if transformers or PEFT has no such model; their errors have many types.

    """
    with _impossible_where(Exception):
        model = _with_adapters(_build(case, device), case)
    if case.compiled:
        for layer in find_stack(model).layers:
            layer.compile(fullgraph=True, backend="aot_eager")
    return _with_parts(model, case).train()


def reversible_model(case: Case, policy: str, device: torch.device) -> Any:
    """Return the model of a set-up with its dynamics and a policy; its weights are the same every time.

    Raises:
        ImpossibleError: if transformers or PEFT has no such model, or if this library refuses it with a ValueError.

    """
    with _impossible_where(Exception):
        model = _build(case, device)
    with _impossible_where(ValueError):
        make_reversible(model, from_dict(case.dynamics), "store", case.states)
        if case.predictors:
            torch.manual_seed(case.seed + 2)
            for predictor in add_update_predictors(model, PredictorForm(case.predictors)):
                perturb_(predictor, 0.02)
    with _impossible_where(Exception):
        model = _with_adapters(model, case)
    model = _with_parts(model, case)
    with _impossible_where(ValueError):
        set_activations(model, _policy(model, case, policy))
        if case.compiled:
            compile_layers(model, backend="aot_eager")
    return model.train()


def draw_batches(case: Case, device: torch.device) -> list[dict[str, Any]]:
    """Return two batches of a set-up with different tokens."""
    return [{name: value.to(device) for name, value in _draw_batch(case, number).items()} for number in range(2)]


def _build(case: Case, device: torch.device) -> Any:
    kind = getattr(transformers, case.family)
    fields = {field.name for field in dataclasses.fields(kind.config_class)}
    dropouts = {name for name in fields if name.endswith(("dropout", "pdrop", "dropout_prob"))}
    names = {
        **dict.fromkeys((name for name in dropouts if "classifier" not in name), case.dropout),
        **dict.fromkeys(fields & {"initializer_range", "init_std"}, case.sharpness),
        **dict.fromkeys(fields & _DEPTHS, case.layers),
        **dict.fromkeys(fields & _POSITIONS, _MOST_TOKENS),
    }
    if case.family in OF_ANY_WIDTH:
        names |= dict.fromkeys(fields & {"hidden_size", "n_embd"}, case.width)
        names |= dict.fromkeys(fields & {"num_attention_heads", "n_head", "num_key_value_heads"}, case.heads)
    torch.manual_seed(case.seed)
    model = tiny_model(kind, **names)
    set_attention(model, case.attention)
    if device.type == "cuda":  # the default counts by torch.histc, which has no deterministic kernel there
        run_experts_in_turn(model)
    return perturb_(model, case.perturbation).to(device, getattr(torch, case.dtype))


def _with_adapters(model: nn.Module, case: Case) -> Any:
    if case.adapters == "none":
        return model
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(case.seed + 3)
    fan = {"fan_in_fan_out": True} if case.family.startswith("GPT2") else {}
    config = LoraConfig(
        r=2, target_modules="all-linear", init_lora_weights=case.adapters == "fresh", lora_dropout=case.dropout, **fan
    )
    return get_peft_model(model, config)


def _with_parts(model: Any, case: Case) -> Any:
    """Freeze parts of a model, and add this library's tiles and head, which an ordinary model can have too."""
    with _impossible_where(ValueError):
        _freeze(model, case)
        if case.tile:
            set_mlp_tiles(model, case.tile)
        if case.chunk:
            set_head_loss(model, HeadLoss(chunk=case.chunk))
    return model


def _freeze(model: nn.Module, case: Case) -> None:
    layers, draw = find_stack(model).layers, random.Random(case.seed)
    for index, layer in enumerate(layers):
        if case.frozen == "first layers" and index < (len(layers) + 1) // 2:
            layer.requires_grad_(False)
        if case.frozen == "some layers" and draw.random() < 0.4:
            layer.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if (case.frozen == "norms" and "norm" in name) or (case.frozen == "half of all" and draw.random() < 0.5):
            parameter.requires_grad_(False)
    if case.frozen == "embedding":
        unwrap(model).get_input_embeddings().requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ImpossibleError("Nothing is trained.")


def _policy(model: nn.Module, case: Case, policy: str) -> str | Budget:
    if not policy.startswith("budget "):
        return policy
    _, share, recompute = policy.split()
    least = smallest_budget(model, *case.batch, cast(Recompute, recompute))
    return Budget(int(float(share) * least) + 1, cast(Recompute, recompute))


def _draw_batch(case: Case, number: int) -> dict[str, Tensor]:
    rows, tokens = case.batch
    generator = torch.Generator().manual_seed(case.seed + number)
    batch: dict[str, Tensor] = {"input_ids": torch.randint(10, 100, (rows, tokens), generator=generator)}
    batch["labels"] = batch["input_ids"].clone()
    if case.padding in ("left", "right"):
        mask = torch.ones(rows, tokens, dtype=torch.int64)
        part = slice(0, tokens // 3) if case.padding == "left" else slice(-(tokens // 3), None)
        mask[0, part] = 0
        batch["attention_mask"] = mask
        batch["labels"][mask == 0] = -100
    elif case.padding == "4-d mask":
        dtype = torch.bfloat16 if case.autocast and case.dtype != "float64" else getattr(torch, case.dtype)
        batch["attention_mask"] = torch.full((rows, 1, tokens, tokens), torch.finfo(dtype).min, dtype=dtype).triu(1)
    elif case.padding == "packed":
        half = tokens // 2
        positions = torch.cat([torch.arange(half), torch.arange(tokens - half)])
        batch["position_ids"] = positions.expand(rows, tokens).contiguous()
    return batch
