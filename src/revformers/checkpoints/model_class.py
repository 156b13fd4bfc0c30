"""The class of a reversible model: the family's own, whose saving, loading and copying keep the model what it is.

For every model class of transformers there is one subclass here, made when it is first needed. It has the same name and
module, because trainers, pipelines and adapters look models up by these; `isinstance` tells the two apart. A model that
is made from its configuration is reversible from the start, so that loading, quantising and spreading it over devices
are transformers' own.
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
from revformers.checkpoints.hub import push_to_hub
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
from revformers.checkpoints.model_files import clear_errors, find_model, hub_keywords, own_variant, refuse_weights
from revformers.errors import ModelFilesError
from revformers.models.attach import attach, check, detach, warn_of_gradient_checkpointing
from revformers.models.discovery import find_stack, unwrap
from revformers.models.forward import ReversibleStack
from revformers.models.identity import Identity
from revformers.models.quantization import keep_trainable
from revformers.models.state import reversible_stack
from revformers.private_api import models_of_auto_class

PREDICTOR = ".update_predictor."


class ReversibleModel(PreTrainedModel):
    """The methods that a reversible model does not share with its family: loading, saving, uploading, copying."""

    _ordinary: Any = None

    def __init__(self, config: Any, *arguments: Any, **keywords: Any) -> None:
        identity = identity_of(config)
        if owner_of(config) is not None:
            # What a model is stays its own: another one from the same configuration must not change it.
            config = copy.deepcopy(config)
        super().__init__(config, *arguments, **keywords)
        if identity is not None:
            # The language model inside another model may have been made from a configuration of its own.
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
        """Load a saved reversible model as `transformers.PreTrainedModel.from_pretrained` loads others.

        A configuration of an ordinary model, or a path to one, gets the dynamics of the saved one.

        Raises:
            FileNotFoundError: where a local path does not exist.
            ModelFilesError: where files are missing, damaged or do not fit each other; an OSError and a ValueError.
            ValueError: where the model there is not a reversible one, or `config` is that of another one.

        """
        if pretrained_model_name_or_path is None:  # weights in memory, with their configuration and state_dict=
            loading = {"config": config, "variant": variant, "output_loading_info": output_loading_info}
            return super().from_pretrained(None, *arguments, **loading, **keywords)
        path, variant = find_model(pretrained_model_name_or_path), own_variant(variant)
        with clear_errors(path, keywords, variant):
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
        """Upload as transformers does, with a marked configuration and the model's own card."""
        if reversible_stack(self) is None:
            return super().push_to_hub(repo_id, *arguments, **keywords)
        return push_to_hub(self, repo_id, *arguments, **keywords)

    def gradient_checkpointing_enable(self, *arguments: Any, **keywords: Any) -> None:
        """Leave the decision to the activation policy, with a warning."""
        if reversible_stack(self) is None:
            super().gradient_checkpointing_enable(*arguments, **keywords)
        else:
            warn_of_gradient_checkpointing()

    def extra_repr(self) -> str:
        """Say in the first line of ``print(model)`` that the model is reversible."""
        reversible, own = identity_of(self.config), super().extra_repr()
        if reversible is None:
            return own
        line = f"reversible: {type(reversible.dynamics).__name__}, activations={reversible.activations}"
        return f"{own}\n{line}" if own else line

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle and copy a model by its ordinary class, as the subclass stands in no module."""
        _, _, *state = super().__reduce_ex__(protocol)
        return (_new_model, (self._ordinary,), *state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Let a copy own its recurrence; the decoder is copied before the model around it, whose turn it is last."""
        super().__setstate__(state)
        reversible = reversible_stack(self)
        if reversible is None:
            return
        owner = reversible.owner and reversible.owner()
        # A shallow copy has the decoder of the model, which owns the recurrence still.
        if owner is None or any(module is owner for module in self.modules()):
            reversible.owner = weakref.ref(self)

    def __setattr__(self, name: str, value: Any) -> None:
        """Let a configuration that takes the place of another say what the model is, as that did."""
        if name == "config" and isinstance(value, PreTrainedConfig):
            reversible = reversible_stack(self)
            if reversible is not None and identity_of(value) is not reversible:
                if owner_of(value) is not None:
                    value = copy.deepcopy(value)  # it is another model's, which stays what it is
                mark_config(value, reversible)
        super().__setattr__(name, value)


def reversible_class(ordinary: Any) -> Any:
    """Return the class of reversible models for a model class, whose `from_pretrained` loads what they saved.

    Args:
        ordinary: a subclass of `transformers.PreTrainedModel`, of transformers or of your own.

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
    """Let the auto classes of transformers know the reversible models of a configuration class."""
    if kind in _REGISTERED:
        return
    _REGISTERED.add(kind)
    ordinary = kind._ordinary
    for auto in vars(modeling_auto).values():
        mapping = models_of_auto_class(auto)
        if mapping is None or ordinary not in mapping:
            continue
        models = mapping[ordinary]
        # Where there are several, transformers takes the first unless the configuration names another.
        model = reversible_class(models[0] if isinstance(models, tuple) else models)
        # Some auto classes make the language model inside a composite one, from a part of the configuration.
        if model.config_class is kind:
            auto.register(kind, model, exist_ok=True)


def become_reversible(model: nn.Module, identity: Identity) -> None:
    """Give a model the recurrence of `identity`, in place, and the classes that keep it so.

    A model that is reversible already loses its update predictors, and gradient checkpointing is switched off.

    Args:
        model: a model of transformers, or a PEFT model around one.
        identity: the recurrence, the activation policy, and the form of the update predictors if there are to be any.

    Raises:
        NotReversibleError, ValueError: as `revformers.models.attach.check`, before anything is changed.

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
    """Give a model whose decoder is reversible, and what stands between the two, the classes that keep it so."""
    for module in _around_decoder(model):
        module.__class__ = reversible_class(type(module))
        mark_config(module.config, reversible)
    reversible.owner = weakref.ref(model)


def own_configs(model: nn.Module) -> None:
    """Give a model copies of its configurations: others may be made from the same, and stay what they are.

    Args:
        model: a model of transformers, or a PEFT model around one.

    """
    copies: dict[int, Any] = {}  # what is one object, or a part of another, stays so
    for module in model.modules():
        config = vars(module).get("config")
        if isinstance(config, PreTrainedConfig):
            vars(module)["config"] = copy.deepcopy(config, copies)


def become_ordinary(model: nn.Module) -> None:
    """Make a reversible model, or the one in a PEFT model, ordinary again, in place; see `make_residual`."""
    if reversible_stack(model) is None:
        return
    own_configs(model)
    inner = unwrap(model)
    detach(find_stack(inner))
    for module in _around_decoder(inner):
        unmark_config(module.config)
        # FSDP puts a class of its own over ours, which then does what the ordinary one does.
        if isinstance(module, ReversibleModel) and type(module) is reversible_class(type(module)._ordinary):
            module.__class__ = module._ordinary


def _around_decoder(model: nn.Module) -> list[Any]:
    """Return the model, and every model of transformers inside it that holds the decoder."""
    decoder = find_stack(model).decoder
    holders = [module for module in model.modules() if any(inner is decoder for inner in module.modules())]
    return [module for module in holders if isinstance(module, PreTrainedModel)]


def owner_of(config: PreTrainedConfig) -> Any:
    """Return the reversible model that a configuration is that of; None where there is none any more."""
    identity = identity_of(config)
    return identity.owner() if isinstance(identity, ReversibleStack) and identity.owner is not None else None


def _own_config(
    kind: Any, config: Any, keywords: dict[str, Any], saved: ReversibleConfig
) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """Return a configuration that takes the place of the saved one, with the saved identity, and the other keywords.

    Raises:
        ValueError: for the configuration of another reversible network.

    """
    if not isinstance(config, PreTrainedConfig):
        config = kind.config_class.from_pretrained(config, **hub_keywords(keywords))
        # As transformers does for a path; those three say how to load, and are fields as well.
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
            f"config= is that of another reversible network ({given.dynamics.recurrence}) than the saved one "
            f"({identity.dynamics.recurrence}); they differ in {', '.join(differences)}. Leave config= out, and call "
            f"revformers.make_reversible on the loaded model to give it other dynamics."
        )
    return config, keywords


def _refuse_other_weights(path: str, model: Any, info: dict[str, Any], saved: ReversibleConfig) -> None:
    """Raise ModelFilesError where weights are missing or left over that the model had when it was saved.

    A model that is loaded under another head than it was saved with (a language model as a classifier) gets a new head,
    as in transformers, which warns of it; its decoder must be whole.
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
