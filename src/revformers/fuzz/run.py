"""Running one set-up: with stored activations, with its policy, and by the recurrence in float64."""

import contextlib
import copy
import dataclasses
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers.utils import logging

from revformers.activations import Budget
from revformers.activations.budget import Recompute
from revformers.dynamics import from_dict
from revformers.errors import NotReversibleError, RebuildMismatchError, StateRangeError
from revformers.fuzz.case import HARMLESS, Case, draw_case
from revformers.fuzz.reference import Recurrence
from revformers.hf.attach import add_update_predictors
from revformers.hf.budget import smallest_budget
from revformers.hf.compilation import compile_layers
from revformers.hf.discovery import find_stack, unwrap
from revformers.hf.head import HeadLoss, InseparableHeadError, set_head_loss
from revformers.hf.mlp_tiles import set_mlp_tiles
from revformers.hf.reversible import make_residual, make_reversible, set_activations
from revformers.hf.state import require_reversible, update_predictors
from revformers.hf.tiny import perturb_, tiny_model
from revformers.update_predictor import PredictorForm

REFUSALS = (NotReversibleError, InseparableHeadError)
"""Errors of a set-up that cannot be: of the model, before anything is computed."""

FARTHEST = 1e-2
"""How far a gradient in float64 may be from that of the recurrence, relative to its size: 2^-30 of state resolution,
and norms that compute in float32, are made larger by sharp weights. A wrong coefficient is a hundred times as far."""

Gradients = dict[str, Tensor]


class _Impossible(Exception):
    """A set-up that transformers, PEFT or this library does not have."""


@dataclass(frozen=True)
class Outcome:
    """What became of a set-up.

    Attributes:
        kind: "exact", "refused" by an error where something had changed, "impossible" before anything ran,
            "out of range" where states overflow, or "FAILED".
        note: for a failure, what is wrong; otherwise the error, or nothing.
        compared: how many gradients were compared.
        distance: of the stored gradient from that of the recurrence, relative to its size; None where not measured.

    """

    kind: str
    note: str = ""
    compared: int = 0
    distance: float | None = None


def run_seed(seed: int) -> tuple[Case, Outcome]:
    """Draw the set-up of a seed, run it on one thread, and judge it."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    case = draw_case(seed)
    return case, run_case(case)


def run_case(case: Case) -> Outcome:
    """Run a set-up and judge it."""
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _judge(case)
    finally:
        torch.set_num_threads(threads)


def _judge(case: Case) -> Outcome:
    try:
        stored = _Run(case, "store").gradients()
        other = _Run(case, case.policy).gradients()
    except _Impossible as error:
        return Outcome("impossible", str(error.__cause__ or error))
    if isinstance(stored, Exception) and type(stored) is type(other):
        kinds = {StateRangeError: "out of range", RuntimeError: "refused"}
        return Outcome(kinds.get(type(stored), "impossible"), f"{type(stored).__name__}: {stored}")
    if isinstance(other, Exception):
        if isinstance(other, RebuildMismatchError | NotReversibleError | ValueError | RuntimeError):
            if case.between not in HARMLESS or isinstance(stored, Exception):
                return Outcome("refused", f"{type(other).__name__}: {other}")
            return Outcome("FAILED", f"refused where nothing had changed: {type(other).__name__}: {other}")
        return Outcome("FAILED", f"an error that is no answer: {type(other).__name__}: {other}")
    if isinstance(stored, Exception):
        return Outcome("FAILED", f"ran where storing raises {type(stored).__name__}: {stored}")
    different = [name for name in stored | other if not _same(stored.get(name), other.get(name))]
    if different:
        return Outcome("FAILED", f"{len(different)} of {len(stored)} gradients differ silently, {different[0]} first")
    distance = _distance_from_reference(case, stored)
    if distance is not None and not distance <= FARTHEST:
        return Outcome("FAILED", f"the stored gradient is {distance:.2g} away from that of the recurrence")
    return Outcome("exact", "", len(stored), distance)


def _same(left: Tensor | None, right: Tensor | None) -> bool:
    if left is None or right is None or left.dtype != right.dtype:
        return left is right
    return left.shape == right.shape and torch.equal(left.nan_to_num(7.0), right.nan_to_num(7.0))


def build(case: Case) -> Any:
    """Return the ordinary model of a set-up, in training mode; the same weights each time."""
    kind = getattr(transformers, case.family)
    fields = {field.name for field in dataclasses.fields(kind.config_class)}
    names = {
        **{
            name: case.dropout
            for name in fields
            if name.endswith(("dropout", "pdrop", "dropout_prob")) and "classifier" not in name
        },
        **dict.fromkeys(fields & {"initializer_range", "init_std"}, case.sharpness),
        **dict.fromkeys(fields & {"num_hidden_layers", "n_layer", "decoder_layers", "num_layers"}, case.layers),
    }
    torch.manual_seed(case.seed)
    model = tiny_model(kind, **names)
    model.config._attn_implementation = case.attention
    return perturb_(model, case.perturbation).to(getattr(torch, case.dtype)).train()


class _Run:
    """One run of a set-up with one policy, from the model to the gradients."""

    def __init__(self, case: Case, policy: str) -> None:
        self._case = case
        self._draw = random.Random(case.seed)
        try:
            self._model: Any = self._prepared(policy)
        except Exception as error:
            # transformers and PEFT have errors of many kinds for what they do not have.
            raise _Impossible(f"{type(error).__name__}: {error}") from error
        self.inputs = [self._batch(number) for number in range(2)]

    def gradients(self) -> Gradients | Exception:
        """Return the gradients of the set-up, or the error that it ends in."""
        torch.set_num_threads(1)
        torch.manual_seed(self._case.seed + 1)
        try:
            return self._passes()
        except Exception as error:
            return error

    def _prepared(self, policy: str) -> nn.Module:
        case = self._case
        model: Any = build(case)
        make_reversible(model, from_dict(case.dynamics), "store")
        if case.predictors:
            torch.manual_seed(case.seed + 2)
            for predictor in add_update_predictors(model, PredictorForm(case.predictors)):
                perturb_(predictor, 0.02)
        if case.adapters != "none":
            model = _with_adapters(model, case)
        self._freeze(model)
        if case.tile:
            set_mlp_tiles(model, case.tile)
        if case.chunk:
            set_head_loss(model, HeadLoss(chunk=case.chunk))
        set_activations(model, _policy(model, case, policy))
        if case.compiled:
            compile_layers(model, backend="aot_eager")
        return model.train()

    def _freeze(self, model: nn.Module) -> None:
        frozen, layers = self._case.frozen, find_stack(model).layers
        for index, layer in enumerate(layers):
            if frozen == "first layers" and index < (len(layers) + 1) // 2:
                layer.requires_grad_(False)
            if frozen == "some layers" and self._draw.random() < 0.4:
                layer.requires_grad_(False)
        for name, parameter in model.named_parameters():
            if (frozen == "norms" and "norm" in name) or (frozen == "half of all" and self._draw.random() < 0.5):
                parameter.requires_grad_(False)
        if frozen == "embedding":
            unwrap(model).get_input_embeddings().requires_grad_(False)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError("nothing is trained")

    def _batch(self, number: int) -> dict[str, Any]:
        case, (rows, tokens) = self._case, self._case.batch
        generator = torch.Generator().manual_seed(case.seed + number)
        batch: dict[str, Any] = {"input_ids": torch.randint(10, 100, (rows, tokens), generator=generator)}
        batch["labels"] = batch["input_ids"].clone()
        if case.padding in ("left", "right"):
            mask = torch.ones(rows, tokens, dtype=torch.int64)
            part = slice(0, tokens // 3) if case.padding == "left" else slice(-(tokens // 3), None)
            mask[0, part] = 0
            batch["attention_mask"] = mask
            batch["labels"][mask == 0] = -100
        elif case.padding == "4-d mask":
            dtype = torch.bfloat16 if case.autocast and case.dtype != "float64" else getattr(torch, case.dtype)
            mask = torch.full((rows, 1, tokens, tokens), torch.finfo(dtype).min, dtype=dtype).triu(1)
            batch["attention_mask"] = mask
        elif case.padding == "packed":
            half = tokens // 2
            positions = torch.cat([torch.arange(half), torch.arange(tokens - half)])
            batch["position_ids"] = positions.expand(rows, tokens).contiguous()
        return batch

    def _loss(self, number: int = 0) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._case.autocast):
            loss: Tensor = self._model(**self.inputs[number]).loss
        return loss

    def _passes(self) -> Gradients:
        order = self._case.order
        losses = [self._loss()]
        if order.startswith("two batches"):
            losses.append(self._loss(1))
        parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        found: Gradients = {}
        self._between()
        if order == "twice":
            losses[0].backward(retain_graph=True)
            losses[0].backward()
        elif order == "a part, then all":
            part = parameters[:: max(1, len(parameters) // 3)]
            for index, gradient in enumerate(
                torch.autograd.grad(losses[0], part, retain_graph=True, allow_unused=True)
            ):
                found[f"part {index}"] = torch.zeros(()) if gradient is None else gradient
            losses[0].backward()
        elif order == "two batches":
            losses[0].backward()
            losses[1].backward()
        elif order == "two batches, last first":
            losses[1].backward()
            losses[0].backward()
        elif order == "with a graph":
            losses[0].backward(create_graph=True)
        elif order == "second derivative":
            first = torch.autograd.grad(losses[0], parameters, create_graph=True, allow_unused=True)
            squares = [gradient.square().sum() for gradient in first if gradient is not None]
            torch.stack(squares).sum().backward()
        elif order == "in inference mode":
            with torch.inference_mode():
                losses[0].backward()
        else:
            losses[0].backward()
        for name, parameter in self._model.named_parameters():
            if parameter.grad is not None:
                found[name] = parameter.grad.detach().clone()
                parameter.grad = None
        return found

    def _between(self) -> None:
        between, layers = self._case.between, find_stack(self._model).layers
        layer = layers[self._draw.randrange(len(layers))]
        weights = list(layer.parameters())
        weight = weights[self._draw.randrange(len(weights))]
        if between == "draw random numbers":
            torch.rand(17)
        elif between == "another forward pass":
            self._loss(1)
        elif between == "another step":
            torch.autograd.grad(self._loss(1), [one for one in self._model.parameters() if one.requires_grad][:1])
        elif between == "generate without a gradient":
            with torch.no_grad():
                self._model(input_ids=self.inputs[1]["input_ids"])
        elif between == "optimizer step":
            with torch.no_grad():
                weight.mul_(1.5)
        elif between == "write to a bias":
            with torch.no_grad():
                next((one for one in weights if one.dim() == 1), weight).add_(0.5)
        elif between == "write to a weight's data":
            weight.data.mul_(1.5)
        elif between == "give a weight other data":
            weight.data = weight.data * 1.5
        elif between == "freeze weights":
            weight.requires_grad_(False)
        elif between == "unfreeze weights":
            layer.requires_grad_(True)
        elif between == "swap what is frozen":
            for one in weights:
                one.requires_grad_(not one.requires_grad)
        elif between == "eval":
            self._model.eval()
        elif between in ("refill the mask", "refill the mask unseen"):
            mask = self.inputs[0].get("attention_mask")
            if mask is not None and mask.dim() == 4:
                (mask if between == "refill the mask" else mask.data).copy_(mask.flip(0).roll(1, -1))
        elif between == "add a hook":
            parts = [part for part in layer.modules() if not any(part.children())]
            parts[self._draw.randrange(len(parts))].register_forward_hook(_enlarge)
        elif between == "another activation function":
            for part in layer.modules():
                for name in part._modules.keys() & {"act", "act_fn", "activation", "activation_fn"}:
                    setattr(part, name, nn.Tanh())
        elif between == "change the threads":
            torch.set_num_threads(2)
        elif between == "tile the MLPs":
            with contextlib.suppress(ValueError):
                set_mlp_tiles(self._model, 5 if not self._case.tile else None)
        elif between == "change the dtype":
            self._model.to(torch.float64 if self._case.dtype != "float64" else torch.float32)
        elif between in ("disable adapters", "merge adapters") and hasattr(self._model, "merge_adapter"):
            act: Callable[[], object] = self._model.merge_adapter
            (self._model.base_model.disable_adapter_layers if between == "disable adapters" else act)()


def _enlarge(module: nn.Module, inputs: Any, output: Any) -> Any:
    return output * 1.5 if isinstance(output, Tensor) else output


def _with_adapters(model: nn.Module, case: Case) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(case.seed + 3)
    fan = {"fan_in_fan_out": True} if case.family.startswith("GPT2") else {}
    config = LoraConfig(
        r=2, target_modules="all-linear", init_lora_weights=case.adapters == "fresh", lora_dropout=case.dropout, **fan
    )
    return get_peft_model(model, config)


def _policy(model: nn.Module, case: Case, policy: str) -> str | Budget:
    if not policy.startswith("budget "):
        return policy
    share, recompute = float(policy.split()[1]), cast(Recompute, policy.split()[2])
    return Budget(int(share * smallest_budget(model, *case.batch, recompute)) + 1, recompute)


def _distance_from_reference(case: Case, stored: Gradients) -> float | None:
    """Return how far the gradient of one backward pass in float64 is from that of the recurrence; None if not known."""
    run = _Run(case, "store")
    model: Any = run._model
    layers = find_stack(model).layers
    routed = any("expert" in name or "router" in name for layer in layers for name, _ in layer.named_modules())
    if (
        case.dtype != "float64"
        or case.autocast
        or case.dropout
        or case.order != "once"
        or case.between not in HARMLESS
        or case.chunk
        or routed  # which expert a token goes to is no continuous function
        or require_reversible(model).dynamics.granularity != "block"
    ):
        return None
    predictors = [copy.deepcopy(predictor) for predictor in update_predictors(model)] or None
    make_residual(model)
    torch.manual_seed(case.seed + 1)
    # With a cache, which models fill unless they are told not to, transformers takes packed documents for one.
    model.config.use_cache = False
    with Recurrence(from_dict(case.dynamics), predictors).on(layers):
        model(**run.inputs[0]).loss.backward()
    pairs = [
        (stored[name].double(), parameter.grad.double())
        for name, parameter in model.named_parameters()
        if name in stored and parameter.grad is not None
    ]
    difference = sum((mine - theirs).square().sum() for mine, theirs in pairs)
    size = sum(theirs.square().sum() for _, theirs in pairs)
    return float(torch.as_tensor(difference / size).sqrt()) if pairs and float(size) else None
