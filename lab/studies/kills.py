"""Kills runs of ``revformers pretrain`` and ``finetune`` at random moments, and compares what they end with.

    python -m lab.studies.kills --output lab/results/kills.json

Every run is killed with SIGKILL several times and resumed each time, until it is finished; its final weights and its
loss curve are then compared with those of an undisturbed run, to the bit. Half of the moments are drawn from the whole
time of a run, the others lie while files are being written. Of two processes one is killed after both have met, and the
other must end by itself; before that it would wait for half an hour, as all programs on PyTorch do whose launcher does
not end them. The exit code is 1 if one did not end, or if a run has not the weights and the losses of the undisturbed
one.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from lab.bench.environment import output_file, write_result
from lab.command import as_command
from lab.processes import be_rank, free_port
from lab.text import sentences
from lab.weights import same_weights
from revformers.cli.main import main as revformers
from revformers.data.tokenizer import train_tokenizer
from revformers.files import PARTIAL
from revformers.training import finetune, pretrain  # noqa: F401 - a forked process need not import them again
from revformers.training.checkpoint_folders import PREFIX
from revformers.training.run_directory import RunDirectory
from revformers.training.seal import is_sealed

STEPS = 12
TRAINING = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "logging_steps": 2,
    "eval_steps": 6,
    "save_steps": 3,
    "arguments": {"use_cpu": True},
}
RECIPES: dict[str, dict[str, Any]] = {
    "pretrain": {
        "model": {
            "architecture": "gpt2",
            "config": {"n_embd": 64, "n_layer": 4, "n_head": 2, "n_positions": 48, "resid_pdrop": 0.1},
        },
        "dynamics": {"name": "hamiltonian"},
        "data": {"source": "text.txt", "vocabulary_size": 300, "block_length": 32, "validation_blocks": 4},
        "sample": {"prompts": ["the"], "max_new_tokens": 8},
        "training": TRAINING,
    },
    "finetune": {
        "model": {"name": "model"},
        "conversion": {"bits": 1, "sequences": 8},
        "data": {"source": "text.txt", "block_length": 32, "validation_blocks": 4},
        "annealing": {"steps": 7},
        "training": TRAINING,
    },
}
SECONDS_OF_WRITING = 0.02
"""About how long the writing of a checkpoint takes."""

SECONDS_TO_END = 60.0
"""How long a process may take after another process of its run was killed."""


@dataclass
class Run:
    """A run that was killed several times.

    Attributes:
        command: the command.
        processes: the number of its processes.
        seed: the seed of the moments.
        kills: for each kill what was going on.
        sentences: what the command said where it ended without a kill and without success.
        hung: the number of processes that did not end by themselves, after a kill or otherwise.
        identical: whether its final weights and its losses are those of the undisturbed run to the bit.

    """

    command: str
    processes: int
    seed: int
    kills: list[str] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    hung: int = 0
    identical: bool = False

    @property
    def passed(self) -> bool:
        """Whether every process ended by itself, and the weights and losses are those of the undisturbed run."""
        return self.identical and not self.hung


def write_inputs() -> None:
    """Write a text, a small model and the recipes into the working directory."""
    lines = sentences(2000)
    Path("text.txt").write_text("".join(lines), encoding="utf-8")
    tokenizer = train_tokenizer(lines, 300)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained("model")
    tokenizer.save_pretrained("model")
    for name, recipe in RECIPES.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


def start(command: str, output: Path, processes: int, resume: bool, log: Path) -> list[int]:
    """Start the processes of a run, and return their ids; the parent of all has imported everything."""
    words = [command, f"{command}.yaml", "--output", str(output), *(["--resume"] if resume else [])]
    port, started = free_port(), []
    for rank in range(processes):
        met(output, rank).unlink(missing_ok=True)
    for rank in range(processes):
        child = os.fork()
        if child:
            started.append(child)
            continue
        code = 1
        try:
            with log.open("a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            if processes > 1:
                be_rank(rank, processes, port)
                mark_meeting(met(output, rank))
            code = revformers(words)
        finally:
            sys.stdout.flush()
            os._exit(code)
    return started


def met(output: Path, rank: int) -> Path:
    """Return the file that says that a process of a run has met the others."""
    return output.with_suffix(f".met-{rank}")


def mark_meeting(mark: Path) -> None:
    """Have the process group of this process write a file when it has formed."""
    form = torch.distributed.init_process_group

    def form_and_mark(*arguments: Any, **options: Any) -> None:
        form(*arguments, **options)
        mark.touch()

    torch.distributed.init_process_group = form_and_mark


def is_running(process: int) -> bool:
    """Whether a child has not ended yet."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def unfinished(output: Path) -> set[tuple[str, int]]:
    """Return the checkpoints, models and results of a run directory that are not whole, each with its last change."""
    found = set()
    with contextlib.suppress(OSError):  # files come and go
        for path in output.iterdir():
            if PARTIAL in path.name or (path.name.startswith(PREFIX) and not is_sealed(path)):
                found.add((path.name, path.stat().st_ctime_ns))
    return found


def phase(output: Path, writing: bool) -> str:
    """Return what a killed run was doing."""
    run = RunDirectory(output)
    if writing:
        return "writing files"
    if not run.recipe.is_file():
        return "preparing"
    saved = run.checkpoints.of_step(STEPS)
    return "finishing" if is_sealed(saved) else "training"


def kill(processes: list[int], output: Path, chance: random.Random, seconds: float) -> str | None:
    """Kill one of the processes at a random moment; return what the run was doing, or None if it ended before that."""
    while_writing = chance.random() < 0.5
    moment = time.monotonic() + chance.uniform(0, seconds * (0.7 if while_writing else 1))
    victim = chance.choice(processes)
    left_over = unfinished(output)  # by the kill before this one
    meeting = [met(output, rank) for rank in range(len(processes)) if len(processes) > 1]
    while (time.monotonic() < moment or not all(mark.exists() for mark in meeting)) and is_running(victim):
        time.sleep(0.001)
    if while_writing:
        while is_running(victim) and not unfinished(output) - left_over:
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, SECONDS_OF_WRITING))
    if not is_running(victim):
        return None
    writing = bool(unfinished(output) - left_over)
    os.kill(victim, signal.SIGKILL)
    return phase(output, writing)


def end(processes: list[int]) -> tuple[list[int], int]:
    """Return the exit codes of all processes, negative for signals, and how many did not end and were killed."""
    until = time.monotonic() + SECONDS_TO_END
    while any(map(is_running, processes)) and time.monotonic() < until:
        time.sleep(0.01)
    hung = list(filter(is_running, processes))
    for process in hung:
        os.kill(process, signal.SIGKILL)
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes], len(hung)


def killed_run(command: str, processes: int, seed: int, kills: int, seconds: float, undisturbed: Path) -> Run:
    """Return a run that was killed `kills` times, resumed each time, and then left alone until its end.

    Args:
        command: the command.
        processes: the number of its processes.
        seed: of the moments.
        kills: how often it is killed; less often if it finishes before.
        seconds: how long the undisturbed run took.
        undisturbed: the run directory of that run.

    """
    run, chance = Run(command, processes, seed), random.Random(seed)
    output = Path(f"killed-{command}-{processes}-{seed}")
    log = output.with_suffix(".log")
    while True:
        resume = bool(RunDirectory(output).checkpoints.complete())
        started = start(command, output, processes, resume, log)
        killed = kill(started, output, chance, seconds) if len(run.kills) < kills else None
        codes, hung = end(started)
        run.hung += hung
        finished = RunDirectory(output).metrics.is_file()
        if killed is not None:
            run.kills.append(killed)
        elif any(codes) or not finished:
            said = log.read_text(encoding="utf-8").splitlines() if any(codes) else []
            run.sentences.append(next(filter(None, reversed(said)), f"exit codes {codes}, without figures"))
            return run
        elif kills and not run.kills:  # it ended before the moment came
            shutil.rmtree(output)
            continue
        if finished:
            same_losses = losses(output) == losses(undisturbed)
            run.identical = same_losses and same_weights(output / "model", undisturbed / "model")
            return run


def losses(output: Path) -> list[dict[str, float]]:
    """Return the loss curve of a finished run, without its seconds."""
    curve = json.loads(RunDirectory(output).history.read_text(encoding="utf-8"))
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in curve]


def table(runs: list[Run]) -> Table:
    """Return the table of the outcomes."""
    result = Table("command", "processes", "runs", "kills", "identical", "sentences", "hung", title="Killed runs")
    for command, processes in sorted({(run.command, run.processes) for run in runs}):
        group = [run for run in runs if (run.command, run.processes) == (command, processes)]
        kills, said = (sum(len(getattr(run, name)) for run in group) for name in ("kills", "sentences"))
        identical, hung = (sum(getattr(run, name) for run in group) for name in ("identical", "hung"))
        numbers = (processes, len(group), kills, identical, said, hung)
        result.add_row(command, *map(str, numbers))
    return result


def main() -> int:
    """Kill and resume all runs, print the table, write the result, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=6, help="runs of each command on one process")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each command on two processes")
    parser.add_argument("--kills", type=int, default=4, help="kills of each run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first run; the others follow it")
    parser.add_argument("--output", type=output_file, required=True)
    options = parser.parse_args()
    output = options.output.resolve()
    # A forked process must not inherit threads.
    torch.set_num_threads(1)
    runs = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ["REVFORMERS_CACHE"] = str(Path(folder, "cache"))
        write_inputs()
        for command in RECIPES:
            for processes, number in ((1, options.runs), (2, options.pairs)):
                for name in ("first", "undisturbed"):  # the first one fills the cache
                    whole, begun = Path(f"{name}-{command}-{processes}"), time.monotonic()
                    codes, _ = end(start(command, whole, processes, False, whole.with_suffix(".log")))
                    seconds = time.monotonic() - begun
                    assert not any(codes), whole.with_suffix(".log").read_text(encoding="utf-8")
                for seed in range(options.seed, options.seed + number):
                    run = killed_run(command, processes, seed, options.kills, seconds, whole)
                    print(
                        f"{command}, {processes} processes, seed {seed}: {run.kills} {run.sentences} {run.hung} hung",
                        flush=True,
                    )
                    runs.append(run)
    result = {
        "kills": sum(len(run.kills) for run in runs),
        "hung": sum(run.hung for run in runs),
        "phases": dict(Counter(one for run in runs for one in run.kills)),
        "runs": [asdict(run) for run in runs],
    }
    write_result(output, result, sys.argv[1:], program="python -m lab.studies.kills")
    Console().print(table(runs), highlight=False)
    return int(not all(run.passed for run in runs))


if __name__ == "__main__":
    as_command(main)
