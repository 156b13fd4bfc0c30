"""``python -m lab report RUN_DIRECTORY``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from revformers.cli.options import read_options
from revformers.errors import as_user_error
from revformers.files import check_place


@dataclass(frozen=True)
class ReportOptions:
    """Write one HTML page with inlined plots about a run directory: its training run, and the measurements of it.

    Attributes:
        run: Directory written by `revformers pretrain`, `python -m lab compare` or `revformers finetune`. For a
            fine-tuning run the page also shows lora-step.json of lab/studies/lora_step.py and evaluation.json of
            `python -m lab evaluate` if they exist.
        out: The page.

    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    out: Path = Path("report.html")


def run(arguments: Sequence[str]) -> int:
    """Write the page and return 0.

    Raises:
        FileNotFoundError: if the directory holds nothing to report.
        UserError: if one of its files cannot be read.

    """
    options = read_options(ReportOptions, "python -m lab report", arguments)
    # imported here, so that the help does not wait for its libraries
    from lab.bench.report import write_report

    check_place(options.out)
    with as_user_error():
        write_report(options.run, options.out, ["report", *arguments])
    print(f"Written to {options.out}.")
    return 0
