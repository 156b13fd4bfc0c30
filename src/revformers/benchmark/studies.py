"""The committed studies: memory against depth, and step time, of a synthetic Llama."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from revformers.benchmark.depth import DepthPoint, as_rows, growths, measure_depths, steps_per_layer
from revformers.benchmark.step_time import measure_step_times
from revformers.benchmark.workload import Arm, Workload, arms_from_names
from revformers.dynamics import Dynamics


def study_memory(
    workload: Workload,
    recurrence: Dynamics,
    arm_names: Sequence[str],
    depths: Sequence[int],
    on_point: Callable[[DepthPoint], object] = lambda point: None,
) -> dict[str, Any]:
    """Return peak memory and its growth at every depth, each point from a fresh process, as JSON keeps it.

    Raises:
        ValueError: for an unknown arm, fewer than two depths, or dynamics that do not fit one of them.

    """
    if len(set(depths)) < 2:
        raise ValueError("Growth with depth needs at least two different numbers of layers.")
    for depth in depths:
        recurrence.check(depth)
    arms = _arms(arm_names, recurrence)
    points = measure_depths(workload, arms, sorted(set(depths)), on_point=on_point)
    return {
        **_description(workload, recurrence),
        "layer_input_bytes": workload.layer_input_bytes,
        **as_rows(points, growths(points, workload, arms)),
    }


def study_time(
    workload: Workload,
    recurrence: Dynamics,
    arm_names: Sequence[str],
    rounds: int,
    warm_up_rounds: int,
    on_round: Callable[[int], object] = lambda round_number: None,
) -> dict[str, Any]:
    """Return the time of a forward and backward pass of every arm, taken in turns, as JSON keeps it.

    All arms have the same weights and see the same batches. Ratios are given over each of the arms "plain_store",
    "plain_checkpoint", "store" and "checkpoint" that takes part.

    Raises:
        ValueError: for an unknown arm, no rounds, or dynamics that do not fit the network's depth.

    """
    recurrence.check(workload.layers)
    arms = _arms(arm_names, recurrence)
    losses: dict[str, list[float]] = {arm.name: [] for arm in arms}

    def step_of(arm: Arm) -> Callable[[int], None]:
        model = arm.apply(workload.build_model())

        def step(number: int) -> None:
            losses[arm.name].append(workload.forward_backward(model, workload.build_batch(number)))

        return step

    times = measure_step_times(
        {arm.name: step_of(arm) for arm in arms}, rounds, warm_up_rounds, device=workload.device, on_round=on_round
    )
    references = [name for name in losses if name.endswith(("store", "checkpoint"))]
    return {
        **_description(workload, recurrence),
        "rounds": rounds,
        "warm_up_rounds": warm_up_rounds,
        "references": references,
        "arms": {
            name: {
                "seconds": dataclasses.asdict(times.summary(name)),
                "ratios": {other: dataclasses.asdict(times.ratio(name, other)) for other in references},
                "seconds_by_round": times.seconds[name],
                "losses": losses[name],
            }
            for name in losses
        },
    }


def _arms(names: Sequence[str], recurrence: Dynamics) -> list[Arm]:
    """Return the arms, or raise ValueError where one rebuilds and the dynamics have no inverse."""
    if "rebuild" in names and not recurrence.reversible:
        raise ValueError(
            f"The dynamics {recurrence.name} have no inverse; leave out the arm rebuild, or choose others."
        )
    return arms_from_names(list(dict.fromkeys(names)), recurrence)


def _description(workload: Workload, recurrence: Dynamics) -> dict[str, Any]:
    return {
        "dynamics": recurrence.to_dict(),
        "recurrence": recurrence.recurrence,
        "steps_per_layer": steps_per_layer(recurrence),
        "workload": dataclasses.asdict(workload),
        "layers": workload.layers,
        "width": workload.width,
        "batch_size": workload.batch_size,
        "sequence_length": workload.sequence_length,
        "precision": workload.precision,
        "device": workload.device,
    }
