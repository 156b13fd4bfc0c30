"""The identity of a reversible model: everything except its weights that defines the network."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from revformers.activations import ACTIVATIONS, ActivationPolicy, parse_policy
from revformers.dynamics import DYNAMICS, Dynamics, from_dict
from revformers.engine.state_format import StateFormat, parse_states
from revformers.errors import ModelFilesError, reason_with_type
from revformers.models.provenance import Provenance
from revformers.models.update_predictor import PredictorForm


@dataclass(kw_only=True)
class Identity:
    """The recurrence of a model and how it is computed, as the config.json of a saved model holds them.

    Attributes:
        dynamics: the recurrence.
        activations: the activation policy.
        states: the format of the states.
        predictor_form: the form of the layers' update predictors; None without them.
        provenance: the origin of the model; None if unknown.

    """

    dynamics: Dynamics
    activations: ActivationPolicy
    states: StateFormat = field(default_factory=StateFormat)
    predictor_form: PredictorForm | None = None
    provenance: Provenance | None = None

    def differences(self, other: "Identity") -> list[str]:
        """Return the names of the properties in which two networks differ; an empty list if only weights may differ.

        The format of the states does not make another network: it only rounds them.
        """
        own, others = self.dynamics.to_dict(), other.dynamics.to_dict()
        names = sorted(name for name in own.keys() | others.keys() if own.get(name) != others.get(name))
        return names + ([] if self.predictor_form == other.predictor_form else ["update predictors"])

    def to_dict(self) -> dict[str, Any]:
        """Return the identity in types that JSON supports."""
        values: dict[str, Any] = {
            "dynamics": self.dynamics.to_dict(),
            "activations": str(self.activations),
            "states": str(self.states),
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
            AttributeError, KeyError, TypeError, ValueError: if this version cannot read the values.

        """
        form = values["update_predictors"]
        for name in ("activations", "states"):
            if not isinstance(values.get(name, ""), str):
                raise TypeError(f"{name} is text, not {type(values[name]).__name__}")
        return cls(
            dynamics=from_dict(values["dynamics"]),
            activations=parse_policy(values["activations"]),
            states=parse_states(values.get("states", "int64")),  # earlier versions had no others
            predictor_form=None if form is None else PredictorForm(**form),
            provenance=Provenance.from_dict(values["provenance"]) if "provenance" in values else None,
        )


def warn_of_unregistered(identity: Identity) -> None:
    """Warn if the dynamics or the policy are not registered, because what is saved with them cannot be loaded."""
    for kind, module, registry in (
        (type(identity.dynamics), "dynamics", DYNAMICS),
        (type(identity.activations), "activations", ACTIVATIONS),
    ):
        if kind.name not in registry:
            warnings.warn(
                f"{kind.__name__} is not registered, so what is saved loads only where revformers.{module}.register"
                f"({kind.__name__}) was called first.",
                stacklevel=4,
            )


def in_words(identity: Identity | None) -> str:
    """Return the words for a network in messages; None stands for an ordinary one."""
    if identity is None:
        return "an ordinary network"
    predictors = " with update predictors" if identity.predictor_form else ""
    return f"a reversible network{predictors} ({identity.dynamics.recurrence})"


def read_identity(values: Mapping[str, Any], path: Path) -> Identity:
    """Return the identity that a file describes.

    Args:
        values: the result of `Identity.to_dict`, possibly with further entries.
        path: the file they were read from, for the message.

    Raises:
        ModelFilesError: if this version cannot read the description.

    """
    try:
        return Identity.from_dict(dict(values))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelFilesError(
            f"{path} describes no network that this version of revformers can read ({reason_with_type(error)}); "
            f"update revformers, or save the model or adapter again."
        ) from error
