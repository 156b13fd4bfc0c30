"""The update predictor: a learned correction that brings a converted layer close to the original network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

Feature = Literal["state", "update", "previous_mlp", "previous_update"]
FEATURES: tuple[str, ...] = get_args(Feature)


@dataclass(frozen=True)
class PredictorForm:
    """The features and the rank of an update predictor.

    Attributes:
        features: the inputs of the affine prediction, in this order: ``"state"``, p[l], and ``"update"``, f_l(p[l]),
            which the step computes anyway; ``"previous_mlp"``, the MLP branch of layer l-1 at p[l], and
            ``"previous_update"``, f_{l-1}(p[l]), which need an extra evaluation. That MLP predicts much of the last
            update, at the cost of one more MLP per layer.
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
        """Return the form in types that JSON supports; ``PredictorForm(**values)`` reads it back."""
        return {"features": list(self.features), "rank": self.rank}


PredictorName = Literal["none", "state", "update", "previous_mlp", "previous_update"]
"""A form, named by its last feature: it includes the features before it, but the last two exclude each other."""


def predictor_form_of(name: PredictorName, rank: int | None = None) -> PredictorForm | None:
    """Return the form called `name`, with the given rank; None for ``"none"``.

    Raises:
        ValueError: if the name is unknown, or the rank is not a whole number of at least 1.

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
    """u = sum over features of M x + c, an affine function of values that a step and its inverse both compute.

    A blended step p[l+1] = a p[l-1] + (1 - a) p[l] + f subtracts a (p[l] - p[l-1]), a times the last update, from the
    result of the ordinary network. The inverse does not know p[l-1], but part of the last update is a linear function
    of p[l] and of functions of it. Adding u keeps the step exactly invertible, for any u.

    Related work: linear maps in place of layers, in arXiv 2405.12250, 2505.21077, 2505.02819 and 2605.15491; see
    docs/science/prior-art.md.

    Attributes:
        form: the features and the rank.
        maps: one map per feature, in their order: (width, width), or (rank, width) if there is an `output`.
        output: (width, rank), for predictors of low rank; otherwise None.
        bias: c, (width).
        scale: factor of the prediction; below 1 while annealing runs at a smaller blend than that of the fit.

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
            features: one tensor (batch, tokens, width) per feature of the form.

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
        """Set the weights to the result of the least-squares fit, tensors of the attributes' shapes."""
        for linear, value in zip(self.maps, maps, strict=True):
            linear.get_parameter("weight").copy_(value)
        self.bias.copy_(bias)
        if self.output is not None:
            assert output is not None
            self.output.weight.copy_(output)
