"""Trains several dynamics from scratch on equal terms, several times each, and compares their validation losses.

    python -m lab.studies.pretraining recipes/pretraining/wikitext-10m.yaml --run.data.source train.txt \
        --run.data.validation_source valid.txt --output RESULT.json

Two parts. Every arm is trained with every learning rate for a few steps, and takes the one with the lowest validation
loss. Then every arm is trained with its learning rate from every seed. A seed gives the initial weights and the order
of the text, which are the same in all arms, so that arms are compared seed by seed; the seed of the first part is none
of those. Every run is one of `revformers pretrain`. An interrupted study goes on with the runs that its result lacks. A
run that diverges is a row without a validation loss.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from lab.bench.environment import describe_environment, output_file, write_result
from lab.command import as_command
from revformers.errors import DivergedError, StateRangeError, UserError, require
from revformers.training.console import command_console
from revformers.training.model import build_dynamics
from revformers.training.pretrain import pretrain
from revformers.training.recipe import DynamicsSection, Recipe
from revformers.training.recipe_file import filled, read_recipe


@dataclass(frozen=True)
class TuningSection:
    """The choice of a learning rate for every arm.

    Attributes:
        learning_rates: Peak learning rates to try.
        max_steps: Optimizer steps of a trial.
        seed: Seed of the trials.

    """

    learning_rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3)
    max_steps: int = 150
    seed: int = 0


@dataclass(frozen=True)
class PretrainingStudy:
    """What is trained, and how often.

    Attributes:
        run: The recipe of every run, but for its dynamics, learning rate and seeds.
        arms: Sections `dynamics` by name. The random_seed of a blend is that of the run.
        tuning: The choice of a learning rate for every arm.
        seeds: Seeds of the compared runs.

    """

    run: Recipe = field(default_factory=Recipe)
    arms: dict[str, Any] = field(default_factory=dict)
    tuning: TuningSection = field(default_factory=TuningSection)
    seeds: tuple[int, ...] = (1, 2, 3)

    def __post_init__(self) -> None:
        require(self.tuning.seed not in self.seeds, "tuning.seed", "none of the seeds", self.tuning.seed)
        for name, values in (("seeds", self.seeds), ("tuning.learning_rates", self.tuning.learning_rates)):
            require(0 < len(set(values)) == len(values), name, "one or more, each once", list(values))
        for arm in self.arms:
            build_dynamics(self.recipe(Trial(arm, 1e-3, 0, 1)).dynamics)

    def recipe(self, trial: "Trial") -> Recipe:
        """Return the recipe of one run."""
        values = self.arms[trial.arm]
        require(isinstance(values, Mapping), f"arms.{trial.arm}", "a section such as {name: leapfrog}", values)
        options = dict(values.get("options", {}))
        if "random_seed" in options:
            options["random_seed"] = trial.seed
        return dataclasses.replace(
            self.run,
            model=dataclasses.replace(self.run.model, seed=trial.seed),
            # The gradients of storing are those of rebuilding, to the bit, and take less time.
            dynamics=filled(DynamicsSection(activations="store"), {**values, "options": options}, "arms", trial.arm),
            training=dataclasses.replace(
                self.run.training,
                seed=trial.seed,
                learning_rate=trial.learning_rate,
                max_steps=trial.max_steps,
                eval_steps=min(self.run.training.eval_steps, trial.max_steps),
                save_steps=trial.max_steps,
            ),
        )


@dataclass(frozen=True)
class Trial:
    """One run: an arm, its learning rate and seed, and the number of optimizer steps."""

    arm: str
    learning_rate: float
    seed: int
    max_steps: int


def train(study: PretrainingStudy, trial: Trial) -> dict[str, Any]:
    """Train once and return the row of the result: the trial, its validation loss and its loss curve."""
    row: dict[str, Any] = dataclasses.asdict(trial) | {"git_commit": describe_environment()["git_commit"]}
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w", encoding="utf-8") as nowhere:
        recipe = dataclasses.replace(study.recipe(trial), output=f"{folder}/run")
        try:
            result = pretrain(recipe, console=Console(file=nowhere))
        except (DivergedError, StateRangeError) as error:
            return row | {"validation_loss": None, "error": str(error).replace(folder, ""), "curve": []}
        curve = json.loads((Path(recipe.output) / "history.json").read_text(encoding="utf-8"))
    kept = ("parameters", "tokens", "training_loss", "validation_loss")
    return row | {name: result.metrics[name] for name in kept} | {"error": None, "curve": curve}


def trials_to_tune(study: PretrainingStudy) -> list[Trial]:
    """Return the runs of the first part."""
    tuning = study.tuning
    return [Trial(arm, rate, tuning.seed, tuning.max_steps) for rate in tuning.learning_rates for arm in study.arms]


def best_rates(study: PretrainingStudy, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the learning rate of every arm; an arm all of whose trials diverged has none."""
    trials = set(trials_to_tune(study))
    best: dict[str, tuple[float, float]] = {}
    for row in rows:
        if trial_of(row) in trials and row["validation_loss"] is not None:
            found = row["validation_loss"], row["learning_rate"]
            best[row["arm"]] = min(best.get(row["arm"], found), found)
    return {arm: rate for arm, (_, rate) in best.items()}


def trials_to_compare(study: PretrainingStudy, rates: Mapping[str, float]) -> list[Trial]:
    """Return the runs of the second part, all arms of a seed after each other."""
    steps = study.run.training.max_steps
    return [Trial(arm, rates[arm], seed, steps) for seed in study.seeds for arm in study.arms if arm in rates]


def trial_of(row: Mapping[str, Any]) -> Trial:
    """Return the trial of a row."""
    return Trial(*(row[item.name] for item in dataclasses.fields(Trial)))


def run_study(study: PretrainingStudy, rows: list[dict[str, Any]], workers: int, save: Callable[[], object]) -> None:
    """Train what `rows` lacks, add it there, and call `save` after every run."""
    for part in (trials_to_tune, lambda study: trials_to_compare(study, best_rates(study, rows))):
        known = set(map(trial_of, rows))
        for row in trained(study, [trial for trial in part(study) if trial not in known], workers):
            rows.append(row)
            save()


def trained(study: PretrainingStudy, trials: Sequence[Trial], workers: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of the trials as they end; several workers are processes of their own.

    After an error no further trial begins. Otherwise it would be raised only when all of them have ended.
    """
    if workers == 1:
        yield from (train(study, trial) for trial in trials)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=end_with_parent)
    try:
        yield from (run.result() for run in as_completed([pool.submit(train, study, trial) for trial in trials]))
    finally:
        pool.shutdown(cancel_futures=True)


def end_with_parent() -> None:
    """End this process when its parent has ended, however that ended; else it would train on, and then wait forever."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def main() -> None:
    """Run the study, or what is left of it, and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Other options override fields of the recipe, as in --run.training.max_steps 100 or --seeds 1 2.",
    )
    parser.add_argument("recipe", type=Path, help="a file of recipes/pretraining, or one like them")
    parser.add_argument("--output", type=output_file, required=True, help="the result; its missing runs are made")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="of the recipe's arms; default: all")
    parser.add_argument("--workers", type=int, default=2, help="runs at once")
    options, overrides = parser.parse_known_args()
    if options.workers < 1:
        parser.error("--workers must be at least 1.")
    study = read_recipe(PretrainingStudy(), options.recipe, overrides)
    require(bool(study.arms), "arms", "one or more dynamics by name", study.arms)
    if options.arms:
        require(
            set(options.arms) <= set(study.arms), "--arms", f"some of {', '.join(map(repr, study.arms))}", options.arms
        )
        study = dataclasses.replace(study, arms={arm: study.arms[arm] for arm in options.arms})
    settings = dataclasses.asdict(study)
    for name in ("source", "validation_source"):  # a result names no directories of its machine
        settings["run"]["data"][name] = Path(settings["run"]["data"][name] or "").name
    settings = json.loads(json.dumps(settings))
    console = command_console()

    def save() -> None:
        row = rows[-1]
        console.print(f"{row['arm']}, {row['learning_rate']}, seed {row['seed']}: {row['validation_loss']}")
        write_result(
            options.output, {"study": settings, "rows": rows}, sys.argv[1:], "python -m lab.studies.pretraining"
        )

    with sole_writer(options.output):
        rows = former_rows(options.output, settings)
        refuse_other_runs(study, rows, options.output)
        run_study(study, rows, options.workers, save)


@contextmanager
def sole_writer(file: Path) -> Iterator[None]:
    """Lock `file` in the block; raise UserError if another process has locked it. A device or a pipe has no lock."""
    if file.exists() and not file.is_file():
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    mark = file.with_name(f".{file.name}.lock")
    lock = FileLock(mark)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"Another study writes {file}; wait for its end, or name another --output.") from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes it itself, at the release
            mark.unlink()
        lock.release()


def former_rows(file: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of an interrupted study, none where `file` does not exist.

    Raises:
        UserError: if the file holds something else.

    """
    if not file.is_file():  # a device holds no study
        return []
    try:
        former = json.loads(file.read_text(encoding="utf-8"))
        if former["study"] == settings:
            list(map(trial_of, former["rows"]))
            return list(former["rows"])
    except (ValueError, KeyError, TypeError, IndexError):
        raise UserError(f"{file} holds no study of pretraining; name another --output, or move it away.") from None
    raise UserError(f"{file} holds another study; name another --output, or move it away.")


def refuse_other_runs(study: PretrainingStudy, rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Raise UserError for runs that the study does not make, such as those of a rate that further trials outdid."""
    made = {*trials_to_tune(study), *trials_to_compare(study, best_rates(study, rows))}
    for trial in map(trial_of, rows):
        if trial not in made:
            raise UserError(
                f"{file} holds a run that its study does not make: {trial.arm}, {trial.learning_rate}, seed "
                f"{trial.seed}, {trial.max_steps} steps; remove it from the rows, or name another --output."
            )


if __name__ == "__main__":
    as_command(main)
