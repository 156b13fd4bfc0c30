"""Plans models of two shapes on several machines, to show what the planner advises and why.

    python -m lab.studies.plan_advice --output RESULT.json

No weights are read and nothing is trained. One shape is that of Llama 3.1 8B, the other is deep and narrow. All plans
are for the data sheet of an H100, weights and computation in bfloat16, AdamW and the chunked head.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from lab.bench.environment import output_file, write_result
from lab.bench.workload import llama_config
from lab.command import as_command
from revformers.byte_size import parse_size
from revformers.planning.devices import DEVICES, Machine
from revformers.planning.plan import make_plan
from revformers.setup import Workload
from revformers.training.console import command_console

LLAMA_8B = {"intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
WIDE = llama_config(32, 4096, 128256, 131072) | LLAMA_8B
SHALLOW = WIDE | {"num_hidden_layers": 3}
NARROW = llama_config(48, 1024, 32000, 131072)


@dataclass(frozen=True)
class Case:
    """A model to train, and a machine.

    Attributes:
        name: what is trained.
        config: the model.
        length: tokens in a sequence.
        training: as in `Workload`.
        memory: memory of the device, as text.
        host: memory of the host, as text; "none", or "unknown".
        link: bytes a second to the host, as text; None for those of the data sheet.

    """

    name: str
    config: dict[str, Any]
    length: int
    training: Any
    memory: str
    host: str
    link: str | None = None

    def workload(self) -> Workload:
        """Return the workload."""
        return Workload(
            self.config,
            sequence_length=self.length,
            precision="bfloat16",
            head="chunked",
            optimizer="adamw",
            training=self.training,
        )

    def machine(self) -> Machine:
        """Return the machine."""
        device = DEVICES["h100"]
        if self.link is not None:
            device = replace(device, link=parse_size(self.link))
        host = {"none": 0, "unknown": None}
        return Machine(device, parse_size(self.memory), host[self.host] if self.host in host else parse_size(self.host))


def cases() -> Iterator[Case]:
    """Yield the cases; those of one shape and length follow one another, because their steps are run once."""
    full = Case("8B, all weights, 8,192 tokens", WIDE, 8192, "full", "80GiB", "400GiB")
    yield full
    yield replace(full, host="4GiB")
    yield replace(full, link="5GB")
    yield replace(full, host="unknown")
    yield replace(full, memory="141GiB")
    yield Case("3 layers of it, 8,192 tokens", SHALLOW, 8192, "full", "18GiB", "400GiB")
    lora = Case("8B, LoRA, 131,072 tokens", WIDE, 131072, "lora", "80GiB", "400GiB")
    yield lora
    yield replace(lora, host="none")
    yield replace(lora, host="none", memory="60GiB")
    yield Case("8B, LoRA, 1,048,576 tokens", WIDE, 1048576, "lora", "400GiB", "200GiB")
    narrow = Case("48 layers of width 1,024, 2,048 tokens", NARROW, 2048, "full", "8GiB", "400GiB")
    yield narrow
    yield replace(narrow, host="none")


def main() -> None:
    """Plan every case, print the advice, and write the plans."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=output_file, required=True)
    options = parser.parse_args()
    rows = []
    for case in cases():
        plan = make_plan(case.workload(), case.machine())
        link = "" if case.link is None else f", link {case.link}/s"
        command_console().print(f"{case.name}; {case.memory}, host {case.host}{link}: {plan.recommendation}")
        machine = {"memory": case.memory, "host": case.host, "link": case.link}
        rows.append({"case": case.name, **machine, "plan": plan.to_dict()})
    write_result(options.output, {"rows": rows}, sys.argv[1:], program="python -m lab.studies.plan_advice")


if __name__ == "__main__":
    as_command(main)
