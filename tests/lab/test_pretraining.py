"""The study of pretraining: which runs it makes, in which order, and what it takes from them."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from lab.studies import pretraining
from lab.studies.pretraining import PretrainingStudy, Trial, TuningSection
from revformers.errors import DivergedError, StateRangeError, UserError
from revformers.training.pretrain import pretrain
from revformers.training.recipe_file import read_recipe

RECIPES = Path(__file__).parents[2] / "recipes/pretraining"
ARMS = {"residual": {"name": "residual"}, "random": {"name": "blended_midpoint", "options": {"random_seed": 0}}}
STUDY = PretrainingStudy(arms=ARMS, tuning=TuningSection((1e-3, 2e-3), max_steps=10), seeds=(1, 2))
TEXT = "".join(f"line {number} of a text, twice {2 * number}\n" for number in range(300))


def row(arm, rate, loss, seed=0, steps=10):
    return {"arm": arm, "learning_rate": rate, "seed": seed, "max_steps": steps, "validation_loss": loss}


def test_every_arm_takes_the_learning_rate_with_its_lowest_loss():
    rows = [row("residual", 1e-3, 3.0), row("residual", 2e-3, 2.0), row("random", 1e-3, 4.0), row("random", 2e-3, None)]
    elsewhere = [row("residual", 1e-3, 1.0, seed=1), row("residual", 1e-3, 1.0, steps=1000)]
    assert pretraining.best_rates(STUDY, rows + elsewhere) == {"residual": 2e-3, "random": 1e-3}


def test_an_arm_that_always_diverges_is_not_compared():
    rates = pretraining.best_rates(STUDY, [row("residual", 1e-3, 3.0), row("random", 1e-3, None)])
    assert {trial.arm for trial in pretraining.trials_to_compare(STUDY, rates)} == {"residual"}


@pytest.mark.parametrize("error", [DivergedError("the loss is nan"), StateRangeError("layer 3 is too large")])
def test_a_run_that_diverges_is_a_row_without_a_loss(monkeypatch, error):
    monkeypatch.setattr(pretraining, "pretrain", raiser(error))
    row = pretraining.train(STUDY, Trial("residual", 1e-3, 0, 10))
    assert (row["validation_loss"], row["error"]) == (None, str(error))


def test_a_run_that_cannot_start_is_no_divergence(monkeypatch):
    monkeypatch.setattr(pretraining, "pretrain", raiser(UserError("there is no such text")))
    with pytest.raises(UserError, match="no such text"):
        pretraining.train(STUDY, Trial("residual", 1e-3, 0, 10))


def raiser(error):
    def fail(recipe, console):
        raise error

    return fail


def test_runs_differ_in_their_arm_alone():
    trials = pretraining.trials_to_compare(STUDY, {"residual": 1e-3, "random": 2e-3})
    assert [(trial.seed, trial.arm) for trial in trials] == [
        (1, "residual"),
        (1, "random"),
        (2, "residual"),
        (2, "random"),
    ]
    one, other = (STUDY.recipe(trial) for trial in trials[:2])
    assert one.model == other.model
    assert one.data == other.data
    assert dataclasses.replace(one.training, learning_rate=2e-3) == other.training
    assert (one.model.seed, one.training.seed, other.dynamics.options) == (1, 1, {"random_seed": 1})


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_seeds_and_rates_are_there_and_differ(seeds):
    with pytest.raises(UserError, match="seeds must be one or more, each once"):
        PretrainingStudy(arms=ARMS, seeds=seeds)
    with pytest.raises(UserError, match=r"tuning\.learning_rates must be"):
        PretrainingStudy(arms=ARMS, tuning=TuningSection(seeds))


def test_the_seed_of_the_trials_is_none_of_the_compared_ones():
    with pytest.raises(UserError, match=r"tuning\.seed"):
        PretrainingStudy(arms=ARMS, seeds=(0, 1))


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"name": "midpiont"}, "midpiont"),
        ({"nam": "midpoint"}, "has no 'nam'; did you mean 'name'"),
        ("midpoint", r"arms\.midpoint must be a section"),
        ({"name": "midpoint", "options": {"step": 1}}, "no option 'step'"),
    ],
)
def test_an_arm_that_cannot_be_built_is_refused_before_any_run(arm, message):
    with pytest.raises(UserError, match=message):
        PretrainingStudy(arms={"midpoint": arm})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.yaml"], "There is no recipe 'nowhere.yaml'."),
        (["no-arms.yaml"], "arms must be one or more dynamics by name"),
        (["wikitext-10m.yaml", "--tuning.learning_rates", "high"], "takes a list of numbers"),
        (["wikitext-10m.yaml", "--run.data.source", "nowhere.txt", "--workers=1"], "nowhere.txt"),
        (["wikitext-10m.yaml", "--arms", "residual", "leap"], "--arms must be some of 'residual', 'midpoint'"),
    ],
)
def test_a_mistake_is_one_sentence(words, message, tmp_path, monkeypatch):
    (tmp_path / "no-arms.yaml").write_text("seeds: [1]")
    monkeypatch.chdir(tmp_path)
    words = [str(RECIPES / words[0]), *words[1:]] if words[0] == "wikitext-10m.yaml" else words
    monkeypatch.setattr(sys, "argv", ["pretraining", *words, "--output", str(tmp_path / "result.json")])
    with pytest.raises((UserError, FileNotFoundError)) as mistake:
        pretraining.main()
    assert message in str(mistake.value)
    assert "\n" not in str(mistake.value)


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_an_arm_of_one_name_is_the_same_in_all_recipes_and_the_ordinary_network_is_one(file):
    study = read_recipe(PretrainingStudy(), file)
    elsewhere = read_recipe(PretrainingStudy(), RECIPES / "wikitext-10m.yaml").arms
    assert study.arms["residual"] == {"name": "residual"}
    assert {name: arm for name, arm in study.arms.items() if name in elsewhere} == {
        name: arm for name, arm in elsewhere.items() if name in study.arms
    }
    first, *others = (study.recipe(Trial(arm, 1e-3, 1, 10)) for arm in study.arms)
    assert all(dataclasses.replace(other, dynamics=first.dynamics) == first for other in others)


@pytest.mark.thorough
def test_a_study_goes_on_with_the_runs_that_its_result_lacks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    model = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = [f"--run.model.config.{name}={value}" for name, value in model.items()]
    words += ["--run.data.source=text.txt", "--run.data.vocabulary_size=300", "--run.data.block_length=16"]
    words += ["--run.training.max_steps=3", "--tuning.max_steps=2", "--tuning.learning_rates", "1e-3", "--seeds", "1"]
    words += ["--run.training.arguments.use_cpu", "true"]
    Path("study.yaml").write_text(json.dumps({"arms": ARMS}))

    def run(*more):
        command = ["pretraining", "study.yaml", *words, "--workers=1", "--output=result.json", *more]
        monkeypatch.setattr(sys, "argv", command)
        pretraining.main()
        return json.loads(Path("result.json").read_text())

    result = run()
    assert len(result["rows"]) == 4
    assert all(row["error"] is None for row in result["rows"])
    Path("result.json").write_text(json.dumps(result | {"rows": result["rows"][:-1]}))
    again = run()
    assert again["rows"][:-1] == result["rows"][:-1]
    removed, repeated = ({**found["rows"][-1], "curve": None} for found in (result, again))
    assert repeated == removed  # the same run gives the same loss
    assert len({row["validation_loss"] for row in result["rows"]}) == 4

    recipe = read_recipe(PretrainingStudy(), "study.yaml", words).recipe(pretraining.trial_of(removed))
    own = pretrain(dataclasses.replace(recipe, output="own"))
    assert own.metrics["validation_loss"] == removed["validation_loss"]
    with pytest.raises(UserError, match="holds another study"):
        run("--seeds=2")


def test_after_an_error_no_further_trial_begins(monkeypatch):
    begun = []

    def fail_first(study, trial):
        begun.append(trial)
        if trial.seed == 0:
            raise UserError("there is no such text")
        time.sleep(0.1)
        return {}

    monkeypatch.setattr(pretraining, "train", fail_first)
    monkeypatch.setattr(pretraining, "ProcessPoolExecutor", lambda workers, **_: ThreadPoolExecutor(workers))
    trials = [Trial("residual", 1e-3, seed, 10) for seed in range(20)]
    with pytest.raises(UserError, match="no such text"):
        list(pretraining.trained(STUDY, trials, 2))
    assert len(begun) < 6


@pytest.mark.thorough
def test_a_worker_ends_with_its_parent(tmp_path):
    """The parent is killed; its worker would otherwise sleep on."""
    (tmp_path / "parent.py").write_text(
        "import os, sys, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from multiprocessing import get_context\n"
        "from lab.studies.pretraining import end_with_parent\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPoolExecutor(1, mp_context=get_context('spawn'), initializer=end_with_parent)\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    pool.submit(time.sleep, 600)\n"
        "    time.sleep(600)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(tmp_path / "parent.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    worker.wait(timeout=20)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "\udcff", '{"study": {}, "rows": [{}]}', '{"study": {}}'])
def test_a_file_that_holds_no_study_is_refused(content, tmp_path):
    file = tmp_path / "result.json"
    file.write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError, match=r"holds no study of pretraining; name another --output"):
        pretraining.former_rows(file, {})


def test_former_rows_are_those_of_the_same_study(tmp_path):
    file = tmp_path / "result.json"
    rows = [row("residual", 1e-3, 3.0)]
    file.write_text(json.dumps({"study": {"seeds": [1]}, "rows": rows}))
    assert pretraining.former_rows(file, {"seeds": [1]}) == rows
    with pytest.raises(UserError, match="holds another study"):
        pretraining.former_rows(file, {"seeds": [2]})
    assert pretraining.former_rows(tmp_path / "none.json", {}) == pretraining.former_rows(Path(os.devnull), {}) == []


def test_runs_of_a_rate_that_further_trials_outdid_are_refused():
    """Else they would stand in the result beside those of the rate that is chosen now."""
    former = [row("residual", 1e-3, 3.0), row("residual", 1e-3, 2.5, seed=1, steps=STUDY.run.training.max_steps)]
    pretraining.refuse_other_runs(STUDY, former, Path("result.json"))
    with pytest.raises(UserError, match=r"does not make: residual, 0\.001, seed 1, \d+ steps; remove it"):
        pretraining.refuse_other_runs(STUDY, [*former, row("residual", 2e-3, 2.0)], Path("result.json"))


@pytest.mark.parametrize("name", ["stdlib-1m", "wikitext-10m", "wikitext-30m"])
def test_a_committed_result_holds_runs_of_its_study_alone(name):
    result = json.loads((RECIPES.parents[1] / f"lab/results/pretraining-{name}.json").read_text(encoding="utf-8"))
    study = read_recipe(PretrainingStudy(), RECIPES / f"{name}.yaml", [])
    assert result["study"]["arms"] == study.arms
    pretraining.refuse_other_runs(study, result["rows"], Path(name))
    assert len(set(map(pretraining.trial_of, result["rows"]))) == len(result["rows"])


def test_a_study_may_be_of_some_arms(tmp_path, monkeypatch):
    words = ["--arms", "leapfrog", "midpoint, mean", "--tuning.learning_rates", "8e-3", "--output", str(tmp_path / "r")]
    monkeypatch.setattr(sys, "argv", ["pretraining", str(RECIPES / "wikitext-10m.yaml"), *words])
    found = []
    monkeypatch.setattr(pretraining, "run_study", lambda study, *_: found.append(study))
    pretraining.main()
    assert list(found[0].arms) == ["leapfrog", "midpoint, mean"]
    assert found[0].tuning.learning_rates == (8e-3,)


def test_two_studies_do_not_write_one_file(tmp_path, monkeypatch):
    """The one that writes last would drop the rows of the other."""
    file = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["pretraining", str(RECIPES / "wikitext-10m.yaml"), "--output", str(file)])
    monkeypatch.setattr(pretraining, "run_study", lambda *_: pretraining.main())
    with pytest.raises(UserError, match=r"Another study writes .*result\.json; wait for its end"):
        pretraining.main()
    monkeypatch.setattr(pretraining, "run_study", lambda *_: None)
    pretraining.main()
    pretraining.main()  # the lock of the former is released
    assert list(tmp_path.glob("*.lock")) == list(tmp_path.glob(".*")) == []


def test_a_file_that_is_refused_and_a_device_leave_no_lock(tmp_path):
    with pytest.raises(UserError, match="first"), pretraining.sole_writer(tmp_path / "new" / "result.json"):
        raise UserError("first")
    with pretraining.sole_writer(Path(os.devnull)), pretraining.sole_writer(Path(os.devnull)):
        assert not list(Path(os.devnull).parent.glob(".null.lock"))
    assert list((tmp_path / "new").iterdir()) == []
