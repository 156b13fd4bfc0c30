"""The network that a pretraining recipe describes."""

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig

import revformers.dynamics as dynamics
from revformers.data.tokenizer import END_OF_TEXT_ID, load_tokenizer
from revformers.errors import UserError, as_user_error
from revformers.reversible import make_reversible
from revformers.training.recipe_file import suggestion

if TYPE_CHECKING:
    from revformers.training.recipe import NetworkSection, Recipe, RecurrenceSection

ACCEPTED_ALIASES = ("attn_implementation", "rope_theta", "rope_scaling")
"""Names that a transformers configuration accepts although it has no such fields."""


def build_dynamics(section: "RecurrenceSection") -> dynamics.Dynamics:
    """Return the dynamics that a recipe names.

    Raises:
        UserError: for an unknown name or option, or a bad value.

    """
    with as_user_error(kinds=(TypeError, ValueError)):
        return dynamics.create(section.name, **section.options)


def build_config(recipe: "Recipe") -> PreTrainedConfig:
    """Return the transformers configuration of the recipe's model, with the vocabulary of its tokenizer.

    Raises:
        UserError: for an architecture or a field that transformers does not have, a value that it refuses, or
            training blocks longer than the model's maximum.

    """
    data = recipe.data
    tokenizer = load_tokenizer(data.tokenizer) if data.tokenizer else None
    values: dict[str, Any] = {"vocab_size": len(tokenizer) if tokenizer else data.vocabulary_size}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        # A tokenizer that is trained later marks both ends of a text with entry 0, and does not pad.
        trained = None if name == "pad_token_id" else END_OF_TEXT_ID
        values[name] = getattr(tokenizer, name) if tokenizer else trained
    config = network_config(recipe.model, values)
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and data.block_length > longest:
        raise UserError(
            f"data.block_length is {data.block_length} tokens, but the model reads at most {longest}; shorten the "
            f"blocks or raise max_position_embeddings in model.config."
        )
    return config


def network_config(section: "NetworkSection", defaults: Mapping[str, Any]) -> PreTrainedConfig:
    """Return the transformers configuration that `section` describes; `defaults` fill the fields that it leaves out.

    Raises:
        UserError: for an architecture or a field that transformers does not have, or a value that it refuses.

    """
    if section.architecture not in CONFIG_MAPPING:
        close = difflib.get_close_matches(section.architecture, CONFIG_MAPPING, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "use a model type such as llama, gpt2 or qwen3."
        raise UserError(f"transformers has no architecture {section.architecture!r}; {hint}")
    _check_names(section.architecture, section.config)
    beginning = f"model.config does not describe a {section.architecture}"
    with as_user_error(beginning, (Exception,)):  # each architecture has its own
        return AutoConfig.for_model(section.architecture, **{**defaults, **section.config})


def build_model(recipe: "Recipe") -> nn.Module:
    """Return the recipe's causal language model on the CPU, with its dynamics and with seeded fresh weights.

    The weights depend only on the recipe: the caller's random state is neither used nor changed.

    Raises:
        UserError: for a wrong description of the model or its dynamics.
        NotReversibleError: for an architecture that does not support these dynamics.

    """
    chosen = build_dynamics(recipe.dynamics)
    config = build_config(recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.model.seed)
        beginning = "transformers builds no causal language model from this model.config"
        with as_user_error(beginning, (Exception,)):  # each architecture has its own
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, recipe.model.dtype))
    with as_user_error():
        return make_reversible(model, chosen, recipe.dynamics.activations, recipe.dynamics.states)


def _check_names(architecture: str, values: Mapping[str, object]) -> None:
    """Raise UserError for an unknown field of the architecture, which transformers would ignore without an error."""
    default = CONFIG_MAPPING[architecture]()
    for name in values:
        if name not in ACCEPTED_ALIASES and not hasattr(default, name):
            known = [*default.to_dict(), *default.attribute_map]
            raise UserError(f"model.config of a {architecture} has no {name!r}{suggestion(name, known)}")
