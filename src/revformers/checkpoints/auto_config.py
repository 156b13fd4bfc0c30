"""The configuration class by which transformers' `AutoConfig` reads a saved reversible model."""

from types import ModuleType
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from revformers.checkpoints.marks import MODEL_TYPE


class AutoReversibleConfig(PreTrainedConfig):
    """Stands for the configurations of all reversible models in transformers' mapping of model types."""

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, values: dict[str, Any], **keywords: Any) -> Any:
        """Return the configuration, of the class of its family, whose models the auto classes know from then on."""
        # imported here: whoever imports AutoConfig need not wait for PyTorch and transformers' models
        from revformers.checkpoints.model_class import register_models
        from revformers.checkpoints.model_config import ReversibleConfig

        made = ReversibleConfig.from_dict(values, **keywords)
        register_models(type(made[0] if isinstance(made, tuple) else made))
        return made


def extend(module: ModuleType) -> None:
    """Make `AutoConfig` of `transformers.models.auto.configuration_auto` know saved reversible models."""
    module.AutoConfig.register(MODEL_TYPE, AutoReversibleConfig, exist_ok=True)
