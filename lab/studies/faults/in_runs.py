"""Faults of files and processes while a command trains: each is a training of seconds in a folder of its own."""

import atexit
import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch

from lab.studies.faults.command import Ended, command, send, send_to_one_rank, when_exists
from lab.studies.faults.fault import ACCEPTABLE, Fault, Outcome, Scenario, first_sentence
from lab.text import sentences
from lab.weights import same_weights
from revformers.checkpoints.marks import KEY
from revformers.training.seal import SEAL_NAME

STEPS = 12
RECIPE = f"""
output: run
model:
  architecture: gpt2
  config: {{n_embd: 32, n_layer: 2, n_head: 2, n_positions: 48, resid_pdrop: 0.1}}
dynamics: {{name: hamiltonian}}
data: {{source: text.txt, vocabulary_size: 300, block_length: 32, validation_blocks: 4}}
training:
  max_steps: {STEPS}
  per_device_train_batch_size: 2
  logging_steps: 4
  eval_steps: 4
  save_steps: 4
  save_total_limit: 3
  learning_rate: 1e-2
  arguments: {{use_cpu: true}}
"""
TRAIN = ("pretrain", "tiny.yaml")
RESUME = (*TRAIN, "--resume")
SAME = "the weights of the undisturbed run"
FIRST, SECOND, LAST = (f"run/checkpoint-{step}" for step in (4, 8, 12))


def write_files(folder: Path) -> None:
    """Write the recipe and its text."""
    (folder / "text.txt").write_text("".join(sentences(400)), encoding="utf-8")
    (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")


@cache
def undisturbed(processes: int = 1) -> Path:
    """Return the folder of a run that nothing disturbed; it is made once, and removed when this process ends."""
    folder = Path(mkdtemp(prefix="faults-"))
    atexit.register(shutil.rmtree, folder)
    write_files(folder)
    ended = command(folder, *TRAIN, processes=processes)
    assert ended.code == 0, ended.output
    return folder


def a_finished_run(folder: Path) -> None:
    """Copy the undisturbed run, with its two last checkpoints, into `folder`."""
    shutil.copytree(undisturbed(), folder, dirs_exist_ok=True)


def a_run_to_resume(folder: Path) -> None:
    """The run as if it had been killed after its second checkpoint, at step 8 of 12."""
    a_finished_run(folder)
    shutil.rmtree(folder / LAST)
    shutil.rmtree(folder / "run/model")
    (folder / "run/metrics.json").unlink()


def compared(ended: Ended, processes: int = 1) -> Outcome:
    """Return whether a run that ended well has the weights of the undisturbed one, or what a user sees of it.

    Args:
        ended: the run.
        processes: the number of its processes.

    """
    if ended.code != 0:
        return ended.outcome()
    if not same_weights(ended.folder / "run/model", undisturbed(processes) / "run/model"):
        return Outcome("wrong", "other weights than the undisturbed run, without an error")
    said = [line for line in ended.output.splitlines() if "set aside" in line]
    if said:
        return Outcome("warned", SAME, first_sentence(said[0], ended.folder))
    return Outcome("right", SAME)


def _weights(checkpoint: Path) -> Path:
    return max(checkpoint.glob("*.safetensors"), key=lambda path: path.stat().st_size)


def resumed(damage: Callable[[Path], object]) -> Scenario:
    """Return a scenario that resumes a killed run after some damage, and compares the weights at its end."""

    def scenario(folder: Path) -> Outcome:
        a_run_to_resume(folder)
        damage(folder)
        return compared(command(folder, *RESUME))

    return scenario


def _cut(folder: Path) -> None:
    path = _weights(folder / SECOND)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(folder: Path) -> None:
    path = _weights(folder / SECOND)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def _lose(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / SECOND / name).unlink()


def _killed(folder: Path) -> Outcome:
    write_files(folder)
    command(folder, *TRAIN, meanwhile=when_exists(f"{FIRST}/{SEAL_NAME}", send(signal.SIGKILL)))
    return compared(command(folder, *RESUME))


def _killed_before_its_figures(folder: Path) -> Outcome:
    a_finished_run(folder)
    (folder / "run/metrics.json").unlink()
    return compared(command(folder, *RESUME))


def _interrupted(folder: Path) -> Outcome:
    write_files(folder)
    ended = command(folder, *TRAIN, meanwhile=when_exists(f"{FIRST}/trainer_state.json", send(signal.SIGINT)))
    if ended.code == 0:
        return Outcome("wrong", "exit code 0")
    if "--resume" not in ended.output:
        return ended.outcome()
    resumed_run = compared(command(folder, *RESUME))
    if resumed_run.result != "right":
        return resumed_run
    return Outcome("right", f"exit code {ended.code}; resumed, {SAME}", ended.sentence)


def _one_rank(number: signal.Signals) -> Scenario:
    """Return a scenario in which one of two processes gets a signal, and the run is resumed."""

    def scenario(folder: Path) -> Outcome:
        write_files(folder)
        act = when_exists(f"{FIRST}/{SEAL_NAME}", send_to_one_rank(number))
        ended = command(folder, *TRAIN, processes=2, meanwhile=act)
        said = ended.outcome()
        if said.result not in ACCEPTABLE:
            return said
        after = compared(command(folder, *RESUME, processes=2), processes=2)
        if after.result not in ("right", "warned"):
            return after
        return Outcome(said.result, f"{said.seen}; resumed, {SAME}", said.sentence)

    return scenario


def _two_runs(folder: Path) -> Outcome:
    """The first run stands still while the second one starts, which would discard it."""
    write_files(folder)
    other: list[Ended] = []

    def start_another(process: "subprocess.Popen[str]") -> None:
        process.send_signal(signal.SIGSTOP)
        second = folder / "elsewhere"
        second.mkdir()
        write_files(second)
        other.append(command(second, *TRAIN, "--output", "../run", "--overwrite"))
        process.send_signal(signal.SIGCONT)

    ended = command(folder, *TRAIN, meanwhile=when_exists("run/recipe.yaml", start_another))
    first = compared(ended)
    return other[0].outcome() if first.result == "right" else first


def _full_disk(folder: Path) -> Outcome:
    """The run directory is a file system in memory that holds one checkpoint and not two."""
    write_files(folder)
    (folder / "run").mkdir()
    mount = 'mount -t tmpfs -o size=700k tmpfs run && exec "$@"'
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    if subprocess.run([*prefix, "true"], cwd=folder, capture_output=True, check=False).returncode:
        return Outcome("not run", "this system lets no user mount a file system")
    return command(folder, *TRAIN, prefix=prefix).outcome()


def _there_already(folder: Path) -> Outcome:
    a_finished_run(folder)
    return command(folder, *TRAIN).outcome()


def _overwrites_another_model(folder: Path) -> Outcome:
    write_files(folder)
    kept = folder / "run/model/model.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_text("the only copy")
    ended = command(folder, *TRAIN, "--overwrite")
    if not kept.exists() or kept.read_bytes() != b"the only copy":
        return Outcome("wrong", "the model is gone")
    return ended.outcome()


def _output_is_a_file(folder: Path) -> Outcome:
    write_files(folder)
    (folder / "run").write_text("")
    return command(folder, *TRAIN).outcome()


def _pickle(folder: Path) -> None:
    """Code in the place of the optimizer's state."""

    class Code:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return Path.write_text, (Path(str(folder / "the code ran")), "")  # type: ignore[return-value]

    torch.save({"state": Code()}, folder / SECOND / "optimizer.pt")


def _code_in_a_checkpoint(folder: Path) -> Outcome:
    outcome = resumed(_pickle)(folder)
    return Outcome("wrong", "the code ran") if (folder / "the code ran").exists() else outcome


def _another_learning_rate(folder: Path) -> Outcome:
    """Followed or refused; the weights of the undisturbed run would mean that the option was ignored."""
    a_run_to_resume(folder)
    ended = command(folder, *RESUME, "--training.learning_rate", "1e-6")
    if ended.code != 0:
        return ended.outcome()
    if same_weights(folder / "run/model", undisturbed() / "run/model"):
        return Outcome("wrong", "the option is ignored")
    return Outcome("right", "the option is followed")


def _endless_blend(folder: Path) -> Outcome:
    a_finished_run(folder)
    path = folder / "run/model/config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values[KEY]["dynamics"] = {"name": "blended_midpoint", "blend": "1e99999999"}
    path.write_text(json.dumps(values), encoding="utf-8")
    return command(folder, "verify", "run/model").outcome()


def faults() -> list[Fault]:
    """Return the rows of this section."""
    again = "Give `--resume` again."
    older = "Nothing: the run continues from the checkpoint before."
    return [
        Fault("The process is killed (SIGKILL) after a checkpoint; resumed", "Resume with `--resume`.", _killed),
        Fault(
            "It is killed after the last checkpoint, before it writes its figures; resumed",
            again,
            _killed_before_its_figures,
        ),
        Fault("Ctrl-C", "Run the command that is printed.", _interrupted),
        Fault("One of two processes dies (SIGKILL)", "Resume under torchrun.", _one_rank(signal.SIGKILL)),
        Fault("One of two processes gets SIGTERM", "Run the command that is printed.", _one_rank(signal.SIGTERM)),
        Fault("The disk is full at a checkpoint", "Free some space, and resume.", _full_disk),
        Fault("A checkpoint's weights are cut short", older, resumed(_cut)),
        Fault("A byte of a checkpoint's weights has changed", older, resumed(_flip)),
        Fault("`optimizer.pt` is missing in a checkpoint", older, resumed(_lose("optimizer.pt"))),
        Fault("`scheduler.pt` is missing in a checkpoint", older, resumed(_lose("scheduler.pt"))),
        Fault("`optimizer.pt` is a pickle with code", older, _code_in_a_checkpoint),
        Fault("A second run starts in the same folder", "Give it another `--output`.", _two_runs),
        Fault("The folder holds a finished run", "`--resume`, `--overwrite`, or another `--output`.", _there_already),
        Fault(
            "`--overwrite` where `model` was not written by a run",
            "Give another `--output`.",
            _overwrites_another_model,
        ),
        Fault("The output is a file", "Give another `--output`.", _output_is_a_file),
        Fault("A resumed run is given another learning rate", "Nothing.", _another_learning_rate),
        Fault('A saved model names a blend of "1e99999999"', "Load a model from a source you trust.", _endless_blend),
    ]
