"""The provenance of a reversible model: its origin, and the measurements of its conversion."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The known facts about how a reversible model was made; None stands for an unknown fact.

    They are saved in config.json, survive loading and saving, and appear in the model card.

    Attributes:
        base_model: hub id of the ordinary model.
        made_by: the command or the Python call that made the model, so that a reader can repeat it.
        source: name of the calibration text.
        calibration_tokens: tokens that the update predictors were fitted to and the next two losses measured on.
        original_loss: mean cross-entropy of the ordinary network on the calibration text, nats per token.
        loss: the same for the reversible network, before any training.
        held_out_tokens: tokens that the last two losses were measured on, and no predictor was fitted to.
        held_out_original_loss: as `original_loss`, on the held-out text.
        held_out_loss: as `loss`, on the held-out text.
        remarks: notes on the conversion for users, one sentence each.

    """

    base_model: str | None = None
    made_by: str | None = None
    source: str | None = None
    calibration_tokens: int | None = None
    original_loss: float | None = None
    loss: float | None = None
    held_out_tokens: int | None = None
    held_out_original_loss: float | None = None
    held_out_loss: float | None = None
    remarks: tuple[str, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the known facts, in types that JSON supports."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return values | {"remarks": list(self.remarks)} if self.remarks is not None else values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Provenance":
        """Read what `to_dict` wrote; facts that only a later version knows are dropped."""
        names = {field.name for field in dataclasses.fields(cls)}
        known = {name: value for name, value in values.items() if name in names}
        if "remarks" in known:
            known["remarks"] = tuple(known["remarks"])
        return cls(**known)

    def updated(self, later: "Provenance") -> "Provenance":
        """Return these facts, replaced by those of `later` where it has them."""
        return dataclasses.replace(self, **later.to_dict())


def hub_id(name: str) -> str | None:
    """Return `name` if it can be the id of a model on the hub; None for a directory or an empty name."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name if name and not Path(name).exists() else None
