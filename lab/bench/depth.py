"""Peak memory against depth, and the growth per added layer."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.bench.memory import PeakMemory
from lab.bench.workload import MeasuredWorkload
from revformers.activations import Rebuild
from revformers.dynamics import Dynamics
from revformers.setup import Setup


@dataclass(frozen=True)
class DepthPoint:
    """The peak memory of one arm at one depth."""

    arm: str
    layers: int
    memory: PeakMemory


@dataclass(frozen=True)
class Growth:
    """Growth of the peak of one arm from one depth to the next, per added layer.

    Attributes:
        arm: name of the arm.
        from_layers: the smaller depth.
        to_layers: the larger depth.
        bytes_per_layer: growth of the peak above weights and gradients.
        share_of_layer_input: the same growth as a share of one layer's input tensor; checkpointing keeps 1.
        side_information_share: the share that the side information of the inverse accounts for.

    """

    arm: str
    from_layers: int
    to_layers: int
    bytes_per_layer: float
    share_of_layer_input: float
    side_information_share: float

    @property
    def excess_share(self) -> float:
        """The share of one layer's input tensor that side information does not account for."""
        return self.share_of_layer_input - self.side_information_share


def growths(points: Sequence[DepthPoint], workload: MeasuredWorkload, arms: Mapping[str, Setup]) -> list[Growth]:
    """Return the growth between neighbouring depths for every arm."""
    result = []
    for name, arm in arms.items():
        of_arm = sorted((point for point in points if point.arm == name), key=lambda point: point.layers)
        for shallow, deep in itertools.pairwise(of_arm):
            added = deep.layers - shallow.layers
            bytes_per_layer = (deep.memory.peak - shallow.memory.peak) / added
            side_bits = 0.0
            if arm.dynamics is not None and isinstance(arm.activations, Rebuild):
                side_bits = mean_side_information_bits(arm.dynamics, range(shallow.layers, deep.layers))
            side_bytes = side_bits * workload.layer_input_elements / 8
            result.append(
                Growth(
                    arm=name,
                    from_layers=shallow.layers,
                    to_layers=deep.layers,
                    bytes_per_layer=bytes_per_layer,
                    share_of_layer_input=bytes_per_layer / workload.layer_input_bytes,
                    side_information_share=side_bytes / workload.layer_input_bytes,
                )
            )
    return result


def mean_side_information_bits(recurrence: Dynamics, layers: Sequence[int]) -> float:
    """Return the bits per element that the inverse keeps for all steps of a layer, averaged over `layers`."""
    return sum(recurrence.steps_per_layer * recurrence.side_information_bits(layer) for layer in layers) / len(layers)


def as_rows(points: Sequence[DepthPoint], growth: Sequence[Growth]) -> dict[str, list[dict[str, Any]]]:
    """Return points and growth as tables in types that JSON supports; memory in bytes."""
    return {
        "points": [{"arm": point.arm, "layers": point.layers, **dataclasses.asdict(point.memory)} for point in points],
        "growth": [{**dataclasses.asdict(row), "excess_share": row.excess_share} for row in growth],
    }
