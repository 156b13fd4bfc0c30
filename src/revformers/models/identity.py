"""The identity of a reversible model: all that makes it the network that it is, apart from its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from revformers import dynamics as dynamics_module
from revformers.activations import ActivationPolicy, parse_policy
from revformers.dynamics.base import Dynamics
from revformers.errors import ModelFilesError
from revformers.models.provenance import Provenance
from revformers.models.update_predictor import PredictorForm


@dataclass(kw_only=True)
class Identity:
    """The recurrence of a model and how it is trained; config.json of a saved model holds it.

    Attributes:
        dynamics: the recurrence.
        activations: the activation policy.
        predictor_form: what the layers' update predictors read; None without them.
        provenance: where the model came from, where that is known.

    """

    dynamics: Dynamics
    activations: ActivationPolicy
    predictor_form: PredictorForm | None = None
    provenance: Provenance | None = None

    def differences(self, other: "Identity") -> list[str]:
        """Return the names of what tells this network from another; none for the same one, weights aside."""
        own, others = self.dynamics.to_dict(), other.dynamics.to_dict()
        names = sorted(name for name in own.keys() | others.keys() if own.get(name) != others.get(name))
        return names + ([] if self.predictor_form == other.predictor_form else ["update predictors"])

    def to_dict(self) -> dict[str, Any]:
        """Return the identity in types that JSON keeps."""
        values: dict[str, Any] = {
            "dynamics": self.dynamics.to_dict(),
            "activations": str(self.activations),
            "update_predictors": None if self.predictor_form is None else self.predictor_form.to_dict(),
            "version": version("revformers"),
        }
        if self.provenance is not None:
            values["provenance"] = self.provenance.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Identity":
        """Read what `to_dict` wrote.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: for values that this version cannot read.

        """
        form = values["update_predictors"]
        if not isinstance(values["activations"], str):
            raise TypeError(f"activations is text, not {type(values['activations']).__name__}")
        return cls(
            dynamics=dynamics_module.from_dict(values["dynamics"]),
            activations=parse_policy(values["activations"]),
            predictor_form=None if form is None else PredictorForm(**form),
            provenance=Provenance.from_dict(values["provenance"]) if "provenance" in values else None,
        )


def in_words(identity: Identity | None) -> str:
    """Return what messages call a network; None is the ordinary one."""
    if identity is None:
        return "an ordinary network"
    predictors = " with update predictors" if identity.predictor_form else ""
    return f"a reversible network{predictors} ({identity.dynamics.recurrence})"


def read_identity(values: Mapping[str, Any], path: Path) -> Identity:
    """Return the identity that a file describes.

    Args:
        values: what `Identity.to_dict` wrote, among others perhaps.
        path: where they were read, for the message.

    Raises:
        ModelFilesError: for a description that this version cannot read.

    """
    try:
        return Identity.from_dict(dict(values))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelFilesError(
            f"{path} describes no network that this version of revformers can read ({type(error).__name__}: {error}); "
            f"update revformers, or save what it belongs to again."
        ) from error
