"""The class of a reversible model: a subclass of the family's class, whose methods preserve the dynamics.

One subclass is made for every model class of transformers, when it is first needed. It has the same name and module,
because trainers, pipelines and adapters look models up by these; `isinstance` distinguishes the two. A model that is
built from its configuration is reversible from the start, so transformers' own code loads, quantises and distributes
it.
"""

import copy
import functools
import os
import weakref
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from revformers.checkpoints import save as saving
from revformers.checkpoints.faulty_files import clear_errors, refuse_pickle, refuse_weights
from revformers.checkpoints.hub import push_to_hub
from revformers.checkpoints.hub_files import hub_keywords
from revformers.checkpoints.marks import PREFIX
from revformers.checkpoints.model_config import (
    ReversibleConfig,
    identity_of,
    mark_config,
    reversible_config_class,
    saved_config,
    unmark_config,
    with_identity,
)
from revformers.checkpoints.model_files import find_model, own_variant
from revformers.errors import ModelFilesError
from revformers.models.attach import attach, check, detach, warn_of_gradient_checkpointing
from revformers.models.discovery import find_stack, unwrap
from revformers.models.forward import ReversibleStack
from revformers.models.identity import Identity
from revformers.models.parts import reversible_stack
from revformers.models.quantization import keep_trainable
from revformers.private_api import models_of_auto_class

PREDICTOR = ".update_predictor."


class ReversibleModel(PreTrainedModel):
    """The methods that a reversible model overrides: loading, saving, uploading, copying."""

    _ordinary: Any = None

    def __init__(self, config: Any, *arguments: Any, **keywords: Any) -> None:
        identity = identity_of(config)
        if owner_of(config) is not None:
            # Another model from the same configuration must not change the one that owns it.
            config = copy.deepcopy(config)
        super().__init__(config, *arguments, **keywords)
        if identity is not None:
            # The decoder may already be reversible, if it was built from a configuration of its own.
            _take_classes(self, reversible_stack(self) or attach(self, identity))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *arguments: Any,
        config: Any = None,
        variant: str | None = None,
        output_loading_info: bool = False,
        **keywords: Any,
    ) -> Any:
        """Load a saved reversible model, with the arguments of `transformers.PreTrainedModel.from_pretrained`.

        A `config` of an ordinary model, or a path to one, gets the dynamics of the saved model.

        Raises:
            FileNotFoundError: if a local path does not exist.
            ModelFilesError: if files are missing, damaged or inconsistent; an OSError and a ValueError.
            ValueError: if the saved model is ordinary, or `config` belongs to another reversible network.

        """
        if pretrained_model_name_or_path is None:  # weights in memory, with their configuration and state_dict=
            loading = {"config": config, "variant": variant, "output_loading_info": output_loading_info}
            return super().from_pretrained(None, *arguments, **loading, **keywords)
        path, variant = find_model(pretrained_model_name_or_path), own_variant(variant)
        with refuse_pickle(path, "model"), clear_errors(path, keywords, variant):
            saved = saved_config(path, keywords)
            if config is not None:
                config, keywords = _own_config(cls, config, keywords, saved)
            model, info = super().from_pretrained(
                path, *arguments, config=config, variant=variant, output_loading_info=True, **keywords
            )
        _refuse_other_weights(path, model, info, saved)
        keep_trainable(model)
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: str | os.PathLike, *arguments: Any, **keywords: Any) -> None:
        """Save with a marked configuration and a model card; see `revformers.checkpoints.save`."""
        reversible = reversible_stack(self)
        if reversible is None:
            super().save_pretrained(save_directory, *arguments, **keywords)
            return
        mark_config(self.config, reversible)
        saving.save_pretrained(self, super().save_pretrained, save_directory, *arguments, **keywords)

    def push_to_hub(self, repo_id: str, *arguments: Any, **keywords: Any) -> Any:
        """Upload with a marked configuration and the model's own card; see `revformers.checkpoints.hub`."""
        if reversible_stack(self) is None:
            return super().push_to_hub(repo_id, *arguments, **keywords)
        return push_to_hub(self, repo_id, *arguments, **keywords)

    def gradient_checkpointing_enable(self, *arguments: Any, **keywords: Any) -> None:
        """Warn that the activation policy decides, without changing the model."""
        if reversible_stack(self) is None:
            super().gradient_checkpointing_enable(*arguments, **keywords)
        else:
            warn_of_gradient_checkpointing()

    def extra_repr(self) -> str:
        """Return the text of ``print(model)`` about the dynamics."""
        reversible, own = identity_of(self.config), super().extra_repr()
        if reversible is None:
            return own
        name, policy, states = type(reversible.dynamics).__name__, reversible.activations, reversible.states
        line = f"reversible: {name}, activations={policy}, states={states}"
        return f"{own}\n{line}" if own else line

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle and copy a model by its ordinary class, because the subclass is not an attribute of any module."""
        _, _, *state = super().__reduce_ex__(protocol)
        return (_new_model, (self._ordinary,), *state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make a copy own its stack; copies of inner models run before that of the outer model, which is the owner."""
        super().__setstate__(state)
        reversible = reversible_stack(self)
        if reversible is None:
            return
        owner = reversible.owner and reversible.owner()
        # A shallow copy shares the decoder with the original, which remains the owner.
        if owner is None or any(module is owner for module in self.modules()):
            reversible.owner = weakref.ref(self)

    def __setattr__(self, name: str, value: Any) -> None:
        """Mark a configuration that replaces the model's as that of a reversible model."""
        if name == "config" and isinstance(value, PreTrainedConfig):
            reversible = reversible_stack(self)
            if reversible is not None and identity_of(value) is not reversible:
                if owner_of(value) is not None:
                    value = copy.deepcopy(value)  # it belongs to another model, which must not change
                mark_config(value, reversible)
        super().__setattr__(name, value)


def reversible_class(ordinary: Any) -> Any:
    """Return the class of reversible models for a model class; its `from_pretrained` loads saved reversible models.

    Args:
        ordinary: a subclass of `transformers.PreTrainedModel`, from transformers or your own.

    """
    if issubclass(ordinary, ReversibleModel):
        return ordinary
    return _make_class(ordinary)


@functools.cache
def _make_class(ordinary: Any) -> Any:
    namespace = {"__module__": ordinary.__module__, "__qualname__": ordinary.__qualname__, "__doc__": ordinary.__doc__}
    namespace |= {"config_class": reversible_config_class(ordinary.config_class), "_ordinary": ordinary}
    return type(ordinary.__name__, (ReversibleModel, ordinary), namespace)


_REGISTERED: set[Any] = set()


def register_models(kind: Any) -> None:
    """Register the reversible models of a configuration class with the auto classes of transformers."""
    if kind in _REGISTERED:
        return
    _REGISTERED.add(kind)
    ordinary = kind._ordinary
    for auto in vars(modeling_auto).values():
        mapping = models_of_auto_class(auto)
        if mapping is None or ordinary not in mapping:
            continue
        models = mapping[ordinary]
        # If there are several, transformers uses the first unless the configuration names another.
        model = reversible_class(models[0] if isinstance(models, tuple) else models)
        # Some auto classes build the language model inside a composite one from a part of the configuration.
        if model.config_class is kind:
            auto.register(kind, model, exist_ok=True)


def become_reversible(model: nn.Module, identity: Identity) -> None:
    """Give a model the recurrence of `identity` and the classes of a reversible model, in place.

    A model that is already reversible loses its update predictors. Gradient checkpointing is switched off.

    Args:
        model: a model of transformers, or a PEFT model around one.
        identity: the recurrence, the activation policy, and the form of the update predictors, if any.

    Raises:
        NotReversibleError, ValueError: as `revformers.models.attach.check`, before any change.

    """
    inner: Any = unwrap(model)
    check(inner, identity)
    become_ordinary(model)
    own_configs(model)
    keep_trainable(inner)
    if any(getattr(module, "gradient_checkpointing", False) for module in inner.modules()):
        warn_of_gradient_checkpointing(stacklevel=4)
        inner.gradient_checkpointing_disable()
    _take_classes(inner, attach(inner, identity))
    register_models(type(inner.config))


def _take_classes(model: nn.Module, reversible: ReversibleStack) -> None:
    """Change a model with a reversible decoder, and all models between the two, to the reversible classes."""
    for module in _around_decoder(model):
        module.__class__ = reversible_class(type(module))
        mark_config(module.config, reversible)
    reversible.owner = weakref.ref(model)


def own_configs(model: nn.Module) -> None:
    """Replace the configurations of a model by copies, because other models may share them and must not change.

    Args:
        model: a model of transformers, or a PEFT model around one.

    """
    copies: dict[int, Any] = {}  # preserves shared and nested configurations
    for module in model.modules():
        config = vars(module).get("config")
        if isinstance(config, PreTrainedConfig):
            vars(module)["config"] = copy.deepcopy(config, copies)


def become_ordinary(model: nn.Module) -> None:
    """Turn a reversible model, or the one in a PEFT model, into the ordinary network, in place; see `make_residual`."""
    if reversible_stack(model) is None:
        return
    own_configs(model)
    inner = unwrap(model)
    detach(find_stack(inner))
    for module in _around_decoder(inner):
        unmark_config(module.config)
        # FSDP replaces our class by a subclass of it, which then behaves like the ordinary one.
        if isinstance(module, ReversibleModel) and type(module) is reversible_class(type(module)._ordinary):
            module.__class__ = module._ordinary


def _around_decoder(model: nn.Module) -> list[Any]:
    """Return the model and every model of transformers inside it that contains the decoder."""
    decoder = find_stack(model).decoder
    holders = [module for module in model.modules() if any(inner is decoder for inner in module.modules())]
    return [module for module in holders if isinstance(module, PreTrainedModel)]


def owner_of(config: PreTrainedConfig) -> Any:
    """Return the reversible model that owns a configuration; None if there is none, or it no longer exists."""
    identity = identity_of(config)
    return identity.owner() if isinstance(identity, ReversibleStack) and identity.owner is not None else None


def _own_config(
    kind: Any, config: Any, keywords: dict[str, Any], saved: ReversibleConfig
) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """Return the configuration to load with instead of the saved one, with the saved identity, and other keywords.

    Raises:
        ValueError: if `config` belongs to another reversible network.

    """
    if not isinstance(config, PreTrainedConfig):
        config = kind.config_class.from_pretrained(config, **hub_keywords(keywords))
        # As in transformers for a path. The three excluded names are fields too, but control the loading.
        names = (keywords.keys() & config.to_dict().keys()) - {"dtype", "torch_dtype", "quantization_config"}
        for name in names:
            setattr(config, name, keywords[name])
        keywords = {name: value for name, value in keywords.items() if name not in names}
    identity, given = identity_of(saved), identity_of(config)
    assert identity is not None
    if given is None:
        return with_identity(config, identity), keywords
    if differences := identity.differences(given):
        raise ValueError(
            f"config= belongs to another reversible network ({given.dynamics.recurrence}) than the saved one "
            f"({identity.dynamics.recurrence}); they differ in {', '.join(differences)}. Leave config= out, and call "
            f"revformers.make_reversible on the loaded model to give it other dynamics."
        )
    return config, keywords


def _refuse_other_weights(path: str, model: Any, info: dict[str, Any], saved: ReversibleConfig) -> None:
    """Raise ModelFilesError if weights of the saved model are missing or unused.

    A model that is loaded with another head than it was saved with (a language model as a classifier) gets a new head,
    as in transformers, which warns of it; its decoder must be complete.
    """
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    if [PREFIX + type(model).__name__] == saved.architectures:
        refuse_weights(path, "do not have", missing)
        refuse_weights(path, "have, where nothing takes it,", unexpected)
        return
    decoder = find_stack(model).decoder
    (name,) = (name for name, module in model.named_modules() if module is decoder)
    prefix = f"{name}." if name else ""
    if any(weight.startswith(prefix) for weight in missing) or any(PREDICTOR in weight for weight in unexpected):
        raise ModelFilesError(
            f"{path} was saved as {', '.join(saved.architectures or ['another class']).removeprefix(PREFIX)}, whose "
            f"weights do not make a whole {type(model).__name__}; load it with revformers.from_pretrained."
        )


def _new_model(ordinary: type[PreTrainedModel]) -> Any:
    kind = reversible_class(ordinary)
    return kind.__new__(kind)
