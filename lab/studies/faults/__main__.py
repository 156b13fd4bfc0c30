"""Causes each fault in a fresh, small scenario, and records what a user sees of it.

    python -m lab.studies.faults --output RESULT.json
    python -m lab.studies.faults --only "threads|Ctrl-C"

Faults in training run in this process; the others run commands in processes of their own, in a folder of their own. The
exit code is 1 if a fault gives wrong numbers without an error, or ends in a traceback.
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lab.bench.environment import output_file, write_result
from lab.studies.faults import in_data, in_runs, in_shards, in_training
from lab.studies.faults.fault import ACCEPTABLE, Fault, Outcome
from revformers.cli.quiet import quiet_libraries
from revformers.errors import counted
from revformers.training.console import command_console, say

SECTIONS = {
    "Training": in_training.faults,
    "Files and processes": in_runs.faults,
    "Data": in_data.faults,
    "Several processes": in_shards.faults,
}


def _seen(fault: Fault) -> Outcome:
    with TemporaryDirectory(prefix="faults-") as folder:
        return fault.scenario(Path(folder).resolve())


def _row(section: str, fault: Fault, outcome: Outcome) -> dict[str, Any]:
    """Return what the result has of a fault; the policies only where there are several."""
    seen = dataclasses.asdict(outcome, dict_factory=lambda items: {k: v for k, v in items if k != "policies" or v})
    return {"section": section, "fault": fault.words, **seen, "remedy": fault.remedy}


def main(arguments: Sequence[str]) -> int:
    """Run the study and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lab.studies.faults", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default="", metavar="PATTERN", help="run the faults whose words match this")
    parser.add_argument("--output", type=output_file, help="file to write, JSON")
    options = parser.parse_args(arguments)
    quiet_libraries()
    console, rows = command_console(), []
    for section, faults in SECTIONS.items():
        for fault in faults():
            if not re.search(options.only, fault.words):
                continue
            outcome = _seen(fault)
            say(console, f"{outcome.result:>9}  {fault.words}: {outcome.seen} {outcome.sentence}")
            rows.append(_row(section, fault, outcome))
    wrong = sum(row["result"] not in ACCEPTABLE for row in rows)
    console.print(f"{counted(len(rows), 'fault')}, {wrong} of them wrong or in a traceback.")
    if options.output:
        write_result(options.output, {"faults": rows}, arguments, "python -m lab.studies.faults")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
