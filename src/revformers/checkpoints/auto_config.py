"""The configuration class with which transformers' `AutoConfig` reads saved reversible models."""

from types import ModuleType
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from revformers.checkpoints.marks import MODEL_TYPE


class AutoReversibleConfig(PreTrainedConfig):
    """Represents the configurations of all reversible models in transformers' mapping of model types."""

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, values: dict[str, Any], **keywords: Any) -> Any:
        """Return the configuration in the class of its family, and register its models with the auto classes."""
        # imported here, so that importing AutoConfig does not import PyTorch and transformers' models
        from revformers.checkpoints.model_class import register_models
        from revformers.checkpoints.model_config import ReversibleConfig

        made = ReversibleConfig.from_dict(values, **keywords)
        register_models(type(made[0] if isinstance(made, tuple) else made))
        return made


def extend(module: ModuleType) -> None:
    """Register saved reversible models with `AutoConfig` in `transformers.models.auto.configuration_auto`."""
    module.AutoConfig.register(MODEL_TYPE, AutoReversibleConfig, exist_ok=True)
