"""Every command, in terminals, locales and homes as people have them."""

import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from tests.cli import in_one_process
from tests.golden.workspace import write_workspace

REPOSITORY = Path(__file__).parents[2]

QUICK = """
--version
--help
lab --help
lab --version
pretrain --help
finetune --help
verify --help
convert --help
plan --help
analyze --help
run --help
compare --help
evaluate --help
report --help
bench --help
bench depth --help
pretrain pretrain.yaml --output 'runs/[lora]' --sample.prompts the --sample.max_new_tokens 4
report 'runs/[lora]' --out 'page[lora].html'
convert model --calibration text.txt --out converted --length 32 --bits 1 --sequences 8 --held_out 4 --compare 2
verify converted --length 8
evaluate converted --against model --tasks local_piqa --data data --limit 4 --out 'new/result.json'
plan converted --memory 4MB --sequence_length 16 --bits 0 --json plan.json --plot plan.svg
run tool.py --steps 1
""".strip().splitlines()

REST = """
finetune finetune.yaml --output tuned
verify tuned/adapter --length 8
evaluate tuned/adapter --tasks local_piqa --data data --limit 4
compare pretrain.yaml --out compared --dynamics_steps 2 --arm_steps 2 --depths 2 3
report compared --out compared.html
bench depth bench.yaml --out bench.json --plot bench.svg
lab.fuzz --help
lab.fuzz --cases 2 --out fuzz.json
lab.survey --help
lab.studies.conversion_loss --help
""".strip().splitlines()

NO_HOME = {"HOME": "/dev/null/nobody", "XDG_CACHE_HOME": "", "HF_HOME": "", "MPLCONFIGDIR": ""}
ENVIRONMENTS = {
    "60 columns, no home": {"COLUMNS": "60", "PYTHONIOENCODING": "utf-8", **NO_HOME},
    "ascii in the locale C": {"COLUMNS": "80", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    "cp1252, 200 columns": {"COLUMNS": "200", "PYTHONIOENCODING": "cp1252"},
}


def too_wide(shown, columns):
    """The lines of tables and boxes that do not fit the terminal; it wraps sentences and paths by itself."""
    laid_out = re.compile(r"\s*([\u2500-\u257f|]|\+--)|.*\S {2,}\S.*\S {2,}\S")
    return [line for line in shown.splitlines() if cell_len(line) > columns and laid_out.match(line)]


def outputs(name, lines, directory):
    """What every command line printed, in characters, after a check of what holds for all."""
    write_workspace(directory)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'src'}"}
    environment |= ENVIRONMENTS[name]
    environment = {key: value for key, value in environment.items() if value and key != "REVFORMERS_CACHE"}
    if "HOME" not in ENVIRONMENTS[name]:
        environment["REVFORMERS_CACHE"] = str(directory / "cache")
    script = [sys.executable, in_one_process.__file__]
    text = "\n".join(lines).encode()
    done = subprocess.run(script, input=text, capture_output=True, cwd=directory, env=environment, check=False)
    codec = environment["PYTHONIOENCODING"]
    shown, errors = done.stdout.decode(codec), done.stderr.decode(codec)
    codes = (directory / "codes.txt").read_text().split("\n")
    wrong = [line for line, code in zip(lines, codes, strict=False) if code != "0"]
    assert not wrong, errors
    assert "Traceback" not in errors
    assert len(codes) == len(lines) + 1
    assert [sign for sign in shown + errors if unicodedata.category(sign) == "Cc" and sign not in "\n\t"] == []
    assert "…" not in shown
    assert too_wide(shown, int(environment["COLUMNS"])) == []
    return dict(zip(lines, re.split(rf"(?m)^{in_one_process.MARK}.*\n", shown), strict=False))


def check(shown, lines):
    """What is shown whole, at every width and in every encoding."""
    report = " ".join(shown[next(line for line in lines if line.startswith("evaluate converted"))].split())
    assert re.search(r"acc (\^|↑|v)", report)
    for heading in ("MODEL", "AGAINST", "difference"):
        assert heading in report
    assert len(re.findall(r"\d\.\d{4} (±|\+-) \d\.\d{4}", report)) >= 6
    plan = " ".join(shown[next(line for line in lines if line.startswith("plan converted"))].split())
    assert all(word in plan for word in ("activations", "states", "context", "time", "rebuild, 0 bits", "offload"))
    assert "runs/[lora]" in shown[next(line for line in lines if line.startswith("pretrain pretrain"))]
    assert "page[lora].html" in shown[next(line for line in lines if line.startswith("report 'runs"))]
    conversion = " ".join(shown[next(line for line in lines if line.startswith("convert model"))].split())
    assert all(word in conversion for word in ("increase", "compute", "share", "pass 1 of 2", "Saved to converted."))


@pytest.mark.parametrize("frame", [box.HEAVY_HEAD, box.ASCII, None])
def test_a_table_that_does_not_fit_is_noticed(frame, capsys):
    table = Table(*("first", "second", "third"), box=frame, padding=(0, 2))
    table.add_row(*("x" * 16,) * 3)
    Console(width=80, file=sys.stdout).print(table)
    shown = f"{capsys.readouterr().out}A sentence, which is much longer than it may be.\n"
    assert too_wide(shown, 80) == []
    assert len(too_wide(shown, 40)) >= 2


@pytest.mark.thorough
@pytest.mark.parametrize("name", list(ENVIRONMENTS)[:2])
def test_commands_run_in_every_environment(name, tmp_path):
    check(outputs(name, QUICK, tmp_path), QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_all_commands_run_in_every_environment(name, tmp_path):
    lines = QUICK + REST
    shown = outputs(name, lines, tmp_path)
    check(shown, lines)
    compared = " ".join(shown[next(line for line in lines if line.startswith("compare pretrain"))].split())
    assert all(word in compared for word in ("recurrence", "bits", "loss", "exact", "time", "hamiltonian", "beyond it"))
