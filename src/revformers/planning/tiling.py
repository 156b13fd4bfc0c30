"""Says whether the MLPs of a workload's model can be evaluated in tiles, before a step with tiles is planned."""

from functools import lru_cache

from revformers.models.tiles import mlps_for_tiles
from revformers.planning.model_size import trained_model
from revformers.setup import Workload


@lru_cache(maxsize=64)
def can_tile(workload: Workload) -> bool:
    """Say whether `set_mlp_tiles` takes the model of a workload with its adapter, all layers of it.

    Raises:
        MissingPackageError: if an adapter needs the package peft and it is not installed.
        ValueError: if no model can be built from the configuration; under autocast, which cannot be planned.

    """
    model = trained_model(workload, workload.layers)
    try:
        mlps_for_tiles(model)
    except ValueError:  # also NotReversibleError
        return False
    return True
