"""The second quickstart: converts, verifies, fine-tunes and evaluates a real model, and writes a page about it.

    python -m lab.studies.real_model [--data DIRECTORY]

It fetches SmolLM2-135M-Instruct (`python -m lab.bench.smollm2`), shows every command before running it, and leaves the
results in --out. If the model is not available, it says why and does nothing. The directory of --data may hold
wikitext-2/train.txt, instruct/instruction-data.json (records of instruction, input and output) and piqa, as `python -m
lab evaluate` reads it. Python's standard library replaces missing texts, and its documentation replaces missing
instructions; without piqa there is no evaluation.
"""

import argparse
import importlib
import inspect
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from lab import REPOSITORY
from lab.bench.smollm2 import ModelUnavailableError, fetch_model
from lab.command import as_command
from revformers.data.cache import file_digest

RECIPE = os.path.relpath(REPOSITORY / "recipes" / "lora-instructions.yaml")
ADAPTER = Path("adapter", "adapter_model.safetensors")
LIBRARY = ("asyncio", "collections", "difflib", "email.utils", "functools", "itertools", "math", "os", "random", "re")
ARMS = ("plain_store", "plain_checkpoint", "rebuild")


def main() -> None:
    """Run every step; the exit code is 0 if all steps succeed, and also if the model is not available."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="directory of an ordinary model, instead of SmolLM2-135M-Instruct")
    parser.add_argument("--data", type=Path, default=Path("data"), help="directory with the texts and the questions")
    parser.add_argument("--out", type=Path, default=Path("runs/real"), help="results; an earlier run there is replaced")
    parser.add_argument("--report", type=Path, default=Path("real.html"))
    parser.add_argument("--bits", type=float, default=4)
    parser.add_argument("--sequences", type=int, default=64, help="of 256 tokens, to convert by")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of each fine-tuning run")
    parser.add_argument("--length", type=int, default=2048, help="tokens of the step whose memory is measured")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each arm")
    parser.add_argument("--limit", type=int, default=200, help="questions")
    options = parser.parse_args()
    started = time.monotonic()
    try:
        model = options.model or fetch_model(progress=lambda line: say(f"{line} ..."))
    except ModelUnavailableError as error:
        say(f"Nothing is done: {error}")
        return

    text = options.data / "wikitext-2" / "train.txt"
    calibration = text if text.is_file() else "stdlib"
    instructions = options.data / "instruct" / "instruction-data.json"
    converted, checkpoint, rebuild = (options.out / name for name in ("converted", "checkpoint", "rebuild"))
    for directory in (converted, checkpoint, rebuild):
        if directory.exists():
            shutil.rmtree(directory)
    options.out.mkdir(parents=True, exist_ok=True)
    if not (text.is_file() and instructions.is_file()):
        say(f"Not all texts are in {options.data}; Python's standard library replaces the missing ones.")
    if not instructions.is_file():
        instructions = options.out / "instructions.json"
        instructions.write_text(json.dumps(documented_functions(), indent=1), encoding="utf-8")

    budget = ["--bits", options.bits, "--calibration", calibration, "--sequences", options.sequences]
    revformers("convert", model, *budget, "--out", converted)
    revformers("verify", converted)
    for directory in (checkpoint, rebuild):
        policy = ["--conversion.activations", directory.name, "--output", directory]
        task = ["--data.source", instructions, "--training.max_steps", options.steps]
        revformers("finetune", RECIPE, "--model.name", model, *policy, *task)
    same = file_digest(checkpoint / ADAPTER) == file_digest(rebuild / ADAPTER)
    say("Checkpointing and rebuilding ended with " + ("the same adapter, to the bit." if same else "OTHER adapters."))
    step = ["--length", options.length, "--rounds", options.rounds, "--arms", *ARMS]
    laboratory("lab.studies.lora_step", model, converted, *step, "--output", rebuild / "lora-step.json")
    if (options.data / "piqa").is_dir():
        task = ["--tasks", "local_piqa", "--data", options.data, "--limit", options.limit]
        laboratory("lab", "evaluate", converted, "--against", model, *task)
        deployed = rebuild / "model"
        laboratory("lab", "evaluate", deployed, "--against", model, *task, "--out", rebuild / "evaluation.json")
    else:
        say(f"There is no {options.data / 'piqa'}; the evaluation on its questions is left out.")
    laboratory("lab", "report", rebuild, "--out", options.report)
    say(f"Done in {(time.monotonic() - started) / 60:.0f} minutes.")
    if not same:
        sys.exit(1)


def documented_functions() -> list[dict[str, str]]:
    """Return instructions and answers from Python's documentation: the description of each function of its library."""
    records = []
    for name in LIBRARY:
        for function, value in inspect.getmembers(importlib.import_module(name), callable):
            answer = (inspect.getdoc(value) or "").partition("\n\n")[0]
            if answer and not function.startswith("_"):
                question = f"What does {function} from Python's module {name} do?"
                records.append({"instruction": question, "input": "", "output": " ".join(answer.split())})
    return records


def say(line: str) -> None:
    """Print a line, in order with what the commands print."""
    print(line, flush=True)


def revformers(*words: object) -> None:
    """Show a command of revformers, and run it."""
    run("revformers", [Path(sys.executable).with_name("revformers")], words)


def laboratory(module: str, *words: object) -> None:
    """Show a module of the laboratory with its options, and run it."""
    run(f"python -m {module}", [sys.executable, "-m", module], words)


def run(name: str, program: list[object], words: tuple[object, ...]) -> None:
    """Show `name` with its options as a user would type it, and run it as `program`; exit if it fails."""
    typed = [str(word) for word in words]
    say(f"\n$ {name} {shlex.join(typed)}")
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    done = subprocess.run([*map(str, program), *typed], check=False, env={**os.environ, "PYTHONPATH": path})
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    as_command(main)
