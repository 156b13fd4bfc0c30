"""The update predictor: what a converted layer adds so that its next state is the original network's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

Feature = Literal["state", "update", "previous_mlp", "previous_update"]
FEATURES: tuple[str, ...] = get_args(Feature)


@dataclass(frozen=True)
class PredictorForm:
    """What an update predictor reads, and how large it is.

    Attributes:
        features: what the prediction is an affine function of, in this order: ``"state"`` p[l] and ``"update"``
            f_l(p[l]), which the step has at hand; ``"previous_mlp"``, the MLP branch of layer l-1 evaluated at p[l],
            and ``"previous_update"``, f_{l-1}(p[l]), which are evaluated for it. That MLP predicts much of
            the last update, for the price of one more MLP a layer.
        rank: rank of the map; None for full rank.

    """

    features: tuple[Feature, ...] = ("state", "update")
    rank: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))
        unknown = [feature for feature in self.features if feature not in FEATURES]
        if unknown or not self.features or len(set(self.features)) < len(self.features):
            raise ValueError(
                f"The features of an update predictor are some of {', '.join(FEATURES)}, each once, not "
                f"{list(self.features)}."
            )
        if self.rank is not None and (isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1):
            raise ValueError(f"The rank of an update predictor is a whole number from 1, or None, not {self.rank!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Return the form in types that JSON keeps; ``PredictorForm(**values)`` reads it back."""
        return {"features": list(self.features), "rank": self.rank}


PredictorName = Literal["none", "state", "update", "previous_mlp", "previous_update"]
"""A form by the last of its features: each has those before it too, but the last two exclude each other."""


def predictor_form_of(name: PredictorName, rank: int | None = None) -> PredictorForm | None:
    """Return the form called `name`, with the given rank; None for ``"none"``.

    Raises:
        ValueError: for a name that does not exist, or a rank that is no whole number from 1.

    """
    if name not in get_args(PredictorName):
        raise ValueError(
            f"There is no update predictor called {name!r}; choose one of {', '.join(get_args(PredictorName))}."
        )
    if name == "none":
        return None
    features: dict[str, tuple[Feature, ...]] = {"state": ("state",), "update": ("state", "update")}
    return PredictorForm(features.get(name) or (*features["update"], name), rank)


class UpdatePredictor(nn.Module):
    """u = sum over features of M x + c, an affine function of what both directions of a step know.

    A blended step p[l+1] = a p[l-1] + (1 - a) p[l] + f takes a (p[l] - p[l-1]), a times the last update, from what
    the ordinary network would do. The inverse does not know p[l-1], but the last update is largely a linear function of
    p[l] and of functions of it. Adding u back leaves the step exactly invertible, whatever u is.

    Attributes:
        form: which features, and the rank.
        maps: one map a feature, in their order: (width, width), or (rank, width) where there is an `output`.
        output: (width, rank), for predictors of low rank; otherwise None.
        bias: c, (width).
        scale: factor of the whole prediction; anneals a blend that is not yet what the predictor was fitted to.

    """

    def __init__(
        self,
        width: int,
        form: PredictorForm,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.form = form
        self.scale = 1.0
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        inner = form.rank or width
        self.maps = nn.ModuleList(nn.Linear(width, inner, bias=False, **place) for _ in form.features)
        self.output: nn.Linear | None = nn.Linear(inner, width, bias=False, **place) if form.rank else None
        self.bias = nn.Parameter(torch.zeros(width, **place))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return u, (batch, tokens, width), in the dtype of the weights.

        Args:
            features: one tensor (batch, tokens, width) for every feature of the form.

        """
        dtype = self.bias.dtype
        parts = [linear(feature.to(dtype)) for linear, feature in zip(self.maps, features, strict=True)]
        prediction = sum(parts[1:], start=parts[0])
        if self.output is not None:
            prediction = self.output(prediction)
        result: Tensor = (prediction + self.bias) * self.scale
        return result

    @torch.no_grad()
    def set(self, maps: Sequence[Tensor], bias: Tensor, output: Tensor | None) -> None:
        """Take the result of the least-squares fit: tensors of the shapes of the attributes, floating dtype."""
        for linear, value in zip(self.maps, maps, strict=True):
            linear.get_parameter("weight").copy_(value)
        self.bias.copy_(bias)
        if self.output is not None:
            assert output is not None
            self.output.weight.copy_(output)
