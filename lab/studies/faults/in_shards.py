"""Faults of a training that several processes share, on two processes of a CPU; the scenarios are in `pair`."""

import dataclasses
import re
from pathlib import Path

from lab.studies.faults.command import Ended, command
from lab.studies.faults.fault import Fault, Outcome, Scenario, first_sentence
from lab.studies.faults.pair import EQUAL, REFUSED


def _pair(name: str) -> Scenario:
    """Return a scenario that runs the one of this name in `pair`."""

    def scenario(folder: Path) -> Outcome:
        return _outcome(command(folder, "-m", "lab.studies.faults.pair", name, processes=2))

    return scenario


def _outcome(ended: Ended) -> Outcome:
    if ended.code == 0:
        return Outcome("right", EQUAL)
    refused = re.findall(rf"{REFUSED}(\w+): (.*)", ended.output)
    if refused and not ended.ends_in_a_traceback:
        kind, message = refused[-1]
        return Outcome("refused", kind, first_sentence(message))
    return dataclasses.replace(ended.outcome(), result="wrong")


def faults() -> list[Fault]:
    """Return the rows of this section."""
    return [
        Fault("Tensor parallel, with the loss in chunks", "Nothing.", _pair("tensor-parallel-chunked-head")),
        Fault("Tensor parallel, with a budget", "Nothing.", _pair("tensor-parallel-budget")),
        Fault(
            "FSDP2, and layers that evaluate the layer before",
            "Give `fully_shard` `reshard_after_forward=False`.",
            _pair("fsdp2-two-evaluations"),
        ),
        Fault(
            "FSDP2 casts the output of every layer",
            "Leave `output_dtype` out of the layers' policy.",
            _pair("fsdp2-output-dtype"),
        ),
        Fault(
            "A stage of a pipeline, which holds some of the layers",
            "Shard the weights with FSDP2.",
            _pair("stage-of-a-pipeline"),
        ),
    ]
