"""The configuration of a reversible model: a subclass of the family's class, which also holds the model's identity.

One subclass is made for every configuration class of transformers, when it is first needed. It has the same name and
model type, because trainers, adapters and tokenizers look models up by these. The config.json that it writes has two
marks: a model type that transformers does not know until revformers is imported, and the name of a weights file that
cannot exist. The auto classes fail at the first, the model's own class (which only warns of a foreign model type) at
the second. Both print how to load the model.
"""

import copy
import functools
import json
from collections.abc import Mapping
from typing import Any, ClassVar

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from revformers.checkpoints.hub_files import hub_keywords
from revformers.checkpoints.marks import KEY, MODEL_TYPE, PREFIX, WEIGHTS_NOTE
from revformers.errors import ModelFilesError, reason_with_type
from revformers.models.identity import Identity
from revformers.private_api import NO_REMOTE_CODE


class ReversibleConfig(PreTrainedConfig):
    """The methods that the configuration of a reversible model overrides.

    Attributes:
        auto_map: empty, because no code in the model's folder is needed; TRL reads it.

    """

    model_type = MODEL_TYPE
    auto_map: ClassVar[dict[str, str]] = {}
    _ordinary: ClassVar[Any] = None

    @classmethod
    def from_pretrained(cls, path: Any, *arguments: Any, **keywords: Any) -> Any:
        """Read a config.json; an ordinary model's gets the ordinary class, because PEFT compares the two."""
        if cls._ordinary is not None and KEY not in super().get_config_dict(path, **keywords)[0]:
            return cls._ordinary.from_pretrained(path, *arguments, **keywords)
        return super().from_pretrained(path, *arguments, **keywords)

    @classmethod
    def get_config_dict(cls, *arguments: Any, **keywords: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a config.json as a dictionary; a reversible model's gets the model type of its family."""
        values, others = super().get_config_dict(*arguments, **keywords)
        if cls._ordinary is not None and KEY in values:
            values = values | {"model_type": values[KEY].get("ordinary_model_type")}
        return values, others

    @classmethod
    def from_dict(cls, values: dict[str, Any], **keywords: Any) -> Any:
        """Return the configuration that a config.json describes, in the class of its family.

        Raises:
            ModelFilesError: if this version cannot read the description.
            ValueError: if it is the configuration of an ordinary model.

        """
        if KEY not in values:
            raise ValueError(
                "This is the config.json of an ordinary model; load it with transformers and call "
                "revformers.make_reversible(model, dynamics)."
            )
        values = {name: value for name, value in values.items() if name != "transformers_weights"}
        description = values.pop(KEY)
        try:
            identity = Identity.from_dict(description)
            values["model_type"] = description["ordinary_model_type"]
            if values["model_type"] not in CONFIG_MAPPING:
                raise ValueError(
                    f"transformers knows no model of the type {values['model_type']!r} until transformers.AutoConfig."
                    f"register({values['model_type']!r}, YourConfig) is called"
                )
            kind = reversible_config_class(CONFIG_MAPPING[values["model_type"]])
            made = super(ReversibleConfig, kind).from_dict(values, **keywords)
        except (AttributeError, KeyError, TypeError, ValueError, StrictDataclassError) as error:
            raise ModelFilesError(
                f"The config.json of {keywords.get('name_or_path') or values.get('_name_or_path') or 'the model'} "
                f"describes no reversible model that this version of revformers or transformers can read "
                f"({reason_with_type(error)}); if it needs dynamics or a policy of your own, import the module "
                f"that registers them first; otherwise update both, or save the model again."
            ) from error
        config = made[0] if isinstance(made, tuple) else made
        config._identity = identity
        return made

    def to_dict(self) -> dict[str, Any]:
        """Return only the fields of the family; other libraries read the model type from here."""
        values: dict[str, Any] = super().to_dict()
        values.pop("_identity", None)
        return values

    def to_json_string(self, use_diff: bool = True) -> str:
        """Return the text of config.json, marked as the configuration of a reversible model."""
        text: str = super().to_json_string(use_diff)
        identity = identity_of(self)
        if identity is None:
            return text
        values = json.loads(text)
        if values.get("architectures"):
            values["architectures"] = [PREFIX + name.removeprefix(PREFIX) for name in values["architectures"]]
        # Not "model_type", because transformers mistakes a nested dictionary with a known one for the config itself.
        description = identity.to_dict() | {"ordinary_model_type": values["model_type"]}
        values |= {"model_type": MODEL_TYPE, "transformers_weights": WEIGHTS_NOTE, KEY: description}
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle and copy an instance by its ordinary class, because the subclass is not an attribute of any module."""
        _, _, *state = super().__reduce_ex__(protocol)
        return (_new_config, (self._ordinary,), *state)


def reversible_config_class(ordinary: Any) -> Any:
    """Return the subclass for reversible models of a configuration class of transformers."""
    if issubclass(ordinary, ReversibleConfig):
        return ordinary
    return _make_class(ordinary)


@functools.cache
def _make_class(ordinary: Any) -> Any:
    # transformers makes every subclass a dataclass, which would replace an __init__ that the family defines.
    # The module stays ours, because transformers 5.17 registers no models for a class of its own modules.
    namespace = {"__qualname__": ordinary.__qualname__, "__doc__": ordinary.__doc__, "__module__": __name__}
    namespace |= {"__init__": ordinary.__init__, "model_type": ordinary.model_type, "_ordinary": ordinary}
    return type(ordinary.__name__, (ReversibleConfig, ordinary), namespace | NO_REMOTE_CODE)


def identity_of(config: Any) -> Identity | None:
    """Return the identity in the configuration of a reversible model; None for that of an ordinary model."""
    identity = vars(config).get("_identity")
    return identity if isinstance(identity, Identity) else None


def mark_config(config: PreTrainedConfig, identity: Identity) -> None:
    """Make a configuration that of a reversible model, in place."""
    config.__class__ = reversible_config_class(type(config))
    config._identity = identity


def unmark_config(config: PreTrainedConfig) -> None:
    """Make the configuration of a reversible model that of an ordinary one, in place."""
    if isinstance(config, ReversibleConfig) and config._ordinary is not None:
        config.__dict__.pop("_identity", None)
        config.__class__ = config._ordinary


def with_identity(config: PreTrainedConfig, identity: Identity) -> Any:
    """Return a copy of a configuration that describes a model with this identity."""
    config = copy.deepcopy(config)
    mark_config(config, identity)
    return config


def saved_config(path: str, keywords: Mapping[str, Any]) -> ReversibleConfig:
    """Return the configuration of a saved reversible model.

    Args:
        path: a directory or a hub id.
        keywords: keywords of `from_pretrained`, with revision, subfolder and the like.

    Raises:
        ModelFilesError: if this version cannot read the description.
        ValueError: if the model is ordinary.

    """
    values, _ = PreTrainedConfig.get_config_dict(path, **hub_keywords(keywords))
    if KEY not in values:
        raise ValueError(
            f"{path} holds an ordinary model; load it with transformers and call revformers.make_reversible(model, "
            f"dynamics)."
        )
    config: ReversibleConfig = ReversibleConfig.from_dict(values, name_or_path=path)
    return config


def _new_config(ordinary: type[PreTrainedConfig]) -> Any:
    kind = reversible_config_class(ordinary)
    return kind.__new__(kind)
