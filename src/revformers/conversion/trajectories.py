"""The states of all calibration tokens in the ordinary and the converted network, layer after layer."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from revformers.conversion.measure import Batch
from revformers.dynamics.base import Coefficients
from revformers.models.visit import layer_calls, visit_layer


class Trajectories:
    """Moves both networks through the layers together; every layer is evaluated twice per token.

    States are stored in memory-mapped files, so memory does not grow with the number of tokens. All tensors are
    float32[tokens of the batch, width].

    Args:
        model: a reversible model that steps by block; its dynamics are those of the converted network, and its update
            predictors, if any, are left out of the updates.
        batches: inputs of the model, e.g. ``{"input_ids": int64[batch, tokens]}``; without padding.
        folder: an existing directory for the files.

    Attributes:
        original: p of the ordinary network, one tensor per batch.
        previous: p[l-1] of the converted network.
        current: p[l] of the converted network.
        update: the layer's update f(p[l]).

    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch], folder: Path) -> None:
        self._model = model
        self._batches = batches
        self._folder = folder
        embeddings = [self._embedding(batch) for batch in batches]
        self.original, self.previous, self.current, self.update = (
            [self._mapped(f"{name}-{index}", value) for index, value in enumerate(embeddings)]
            for name in ("original", "previous", "current", "update")
        )
        self._features: list[dict[str, Tensor]] = [{} for _ in batches]

    def states(self) -> dict[str, Tensor]:
        """Return the states of all batches under the names that `restore` expects."""
        walked = {"original": self.original, "previous": self.previous, "current": self.current}
        return {f"{name}-{index}": state for name, states in walked.items() for index, state in enumerate(states)}

    def restore(self, states: Mapping[str, Tensor]) -> None:
        """Continue from `states`; if they are empty, stay at the first layer."""
        own = self.states()
        for name, value in states.items():
            own[name].copy_(value)

    def evaluate(self, layer: int, index: int, *, original_only: bool = False) -> None:
        """Evaluate layer number `layer` on batch number `index`, and move the ordinary network past it.

        Args:
            layer: the layer.
            index: the batch.
            original_only: whether the converted network has the states of the ordinary one, so that one evaluation
                is enough for both.

        """
        visit = visit_layer(self._model, self._batches[index], layer)

        def at(states: Tensor, field: Callable[[Tensor], Tensor]) -> Tensor:
            read = states.view(visit.embedding.shape).to(visit.embedding)
            return field(read).to("cpu", torch.float32).flatten(0, -2)

        added = at(self.original[index], visit.ordinary)
        self.original[index].add_(added)
        self.update[index].copy_(added if original_only else at(self.current[index], visit.update))
        for name, field in visit.previous.items():
            value = at(self.current[index], field)
            if name not in self._features[index]:
                self._features[index][name] = self._mapped(f"{name}-{index}", value)
            self._features[index][name].copy_(value)

    def features(self, index: int, names: Sequence[str]) -> list[Tensor]:
        """Return the named features of an update predictor at the last evaluated layer."""
        known = {"state": self.current[index], "update": self.update[index], **self._features[index]}
        return [known[name] for name in names]

    def blended(self, index: int, coefficients: Coefficients) -> Tensor:
        """Return a p[l-1] + b p[l] + c f(p[l]) of the converted network."""
        a, b, c = float(coefficients.previous), float(coefficients.current), coefficients.update
        return a * self.previous[index] + b * self.current[index] + c * self.update[index]

    def advance(self, index: int, successor: Tensor) -> None:
        """Advance the converted network on batch number `index` to `successor`, its p[l+1]."""
        self.previous[index].copy_(self.current[index])
        self.current[index].copy_(successor)

    def _embedding(self, batch: Batch) -> Tensor:
        embedding, _ = layer_calls(self._model, batch)
        return embedding.to("cpu", torch.float32).flatten(0, -2)

    def _mapped(self, name: str, values: Tensor) -> Tensor:
        """Return a memory-mapped copy of `values`."""
        mapped: Any = torch.from_file(
            str(self._folder / name), shared=True, size=values.numel(), dtype=torch.float32
        ).view(values.shape)
        mapped.copy_(values)
        return mapped
