"""Runs of the commands pretrain and finetune on two processes."""

import io
import json
import os
import re
import signal
from dataclasses import replace

import pytest
from rich.console import Console
from safetensors.torch import load_file

from revformers.errors import UserError
from revformers.training import trainer_run
from revformers.training.finetune import finetune
from revformers.training.interruption import SaveOnSignal
from revformers.training.pretrain import pretrain
from tests.training.tiny import tiny_recipe
from tests.training.tiny_finetune import tiny_finetune_recipe

pytestmark = pytest.mark.thorough


class Interrupting(SaveOnSignal):
    """Sends SIGTERM to the second process alone, in the third step."""

    def on_step_begin(self, args, state, control, **kwargs):
        if args.process_index == 1 and state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def run(rank, command, recipe, interrupted=False, **options):
    os.environ["REVFORMERS_CACHE"] = f"{recipe.output}-cache"
    kind, trainer_run.SaveOnSignal = trainer_run.SaveOnSignal, Interrupting if interrupted else SaveOnSignal
    try:
        return command(recipe, console=Console(file=io.StringIO()), **options)
    finally:
        trainer_run.SaveOnSignal = kind


def curve(directory, name):
    history = json.loads((directory / "history.json").read_text())
    return [entry[name] for entry in history if name in entry]


def weights(directory):
    (file,) = (directory / "model").glob("*.safetensors")
    return load_file(file)


def test_two_processes_fine_tune_as_one_with_the_same_global_batch(pair, tmp_path):
    """One process takes all four sequences of a step; without an exchange of gradients, two would each take two."""
    options = {"training.max_steps": 2}  # more would begin a second epoch, whose batches are others
    alone, together = tmp_path / "alone", tmp_path / "together"
    four = {"training.per_device_train_batch_size": 4, "output": str(alone)}
    run(0, finetune, tiny_finetune_recipe(tmp_path, options | four))
    pair.run(run, finetune, tiny_finetune_recipe(tmp_path, options | {"output": str(together)}))
    for figure in ("grad_norm", "loss", "eval_loss"):
        assert curve(together, figure) == pytest.approx(curve(alone, figure), rel=1e-4), figure
    one, two = (json.loads((directory / "metrics.json").read_text()) for directory in (alone, together))
    for figure in ("original_validation_loss", "initial_validation_loss", "tokens"):
        assert two[figure] == pytest.approx(one[figure], rel=1e-5)
    expected, got = weights(alone), weights(together)
    assert all(expected[name].allclose(got[name], atol=1e-4) for name in expected)


def test_two_processes_pretrain_as_one_with_the_same_global_batch(pair, tmp_path):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 48}
    without_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    options = {"training.max_steps": 2, "model.config": sizes | without_dropout}

    def recipe(name, size):
        own = {"training.per_device_train_batch_size": size, "output": str(tmp_path / name)}
        return tiny_recipe(tmp_path, options | own)

    run(0, pretrain, recipe("alone", 4))
    pair.run(run, pretrain, recipe("together", 2))
    run(0, pretrain, recipe("half", 2))
    expected, got, half = (weights(tmp_path / name) for name in ("alone", "together", "half"))

    def distance(found):
        return max((value - found[name]).abs().max().item() for name, value in expected.items())

    assert distance(got) < 1e-2 * distance(half)


def test_a_signal_to_one_process_stops_both_and_both_go_on(pair, tmp_path):
    through, stopped = (tiny_recipe(tmp_path, {"output": str(tmp_path / name)}) for name in ("through", "stopped"))
    pair.run(run, pretrain, through)
    results = pair.run(run, pretrain, stopped, True)
    assert [(result.finished, result.step, result.signal) for result in results] == [(False, 3, signal.SIGTERM)] * 2
    with pytest.raises(UserError, match="was started with 2 processes, not 1, on which"):
        run(0, pretrain, stopped, resume=True)
    assert all(result.finished for result in pair.run(resumed, stopped))
    expected, got = weights(tmp_path / "through"), weights(tmp_path / "stopped")
    assert all(expected[name].equal(got[name]) for name in expected)
    for figure in ("loss", "eval_loss"):
        assert curve(tmp_path / "stopped", figure) == curve(tmp_path / "through", figure)


def resumed(rank, recipe):
    return run(rank, pretrain, recipe, resume=True)


def refused(rank, recipe):
    try:
        run(rank, pretrain, recipe)
    except (UserError, SystemExit) as error:
        return str(error)
    return None


def test_a_refusal_is_printed_once_and_ends_both(pair, tmp_path):
    recipe = tiny_recipe(tmp_path, {"training.max_steps": 1})
    pair.run(run, pretrain, recipe)
    main, other = pair.run(refused, recipe)
    assert "already holds a run; give --resume" in main
    assert other == "2"


def refused_apart(rank, recipe):
    """Give each process an output of its own, as on two hosts that share no files."""
    trainer_run.SECONDS_TO_APPEAR = 0.1
    return refused(rank, replace(recipe, output=f"{recipe.output}-{rank}"))


def test_hosts_that_share_no_directory_are_refused_on_all(pair, tmp_path):
    main, other = pair.run(refused_apart, tiny_recipe(tmp_path, {"training.max_steps": 1}))
    assert re.search(r"run-0 on .* is not the directory of that name on .*; choose one that all its hosts share", main)
    assert other == "2"
