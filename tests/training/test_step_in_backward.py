import copy
import shutil

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torchao.optim import AdamW8bit, CPUOffloadOptimizer
from transformers.models.llama.modeling_llama import LlamaMLP

import revformers as rf
from revformers.engine import tape as rebuild
from revformers.errors import RebuildMismatchError, UserError
from revformers.head.loss import HeadLoss, set_head_loss
from revformers.models.attach import add_update_predictors
from revformers.models.tiles import set_mlp_tiles
from revformers.models.update_predictor import PredictorForm
from revformers.training.pretrain import training_arguments
from revformers.training.step_in_backward import step_in_backward
from tests.tiny_models import batch, tiny
from tests.training.test_pretrain import run, weights
from tests.training.tiny import tiny_recipe


def train(model, *, in_backward, steps=3, optimizer_class=torch.optim.AdamW):
    """Train a few steps with decay for matrices only and a falling learning rate; return the optimizer."""
    matrices = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = optimizer_class(groups, lr=1e-2)
    schedule = LambdaLR(optimizer, lambda step: 1 / (step + 1))
    hooks = step_in_backward(optimizer) if in_backward else []
    for number in range(steps):
        torch.manual_seed(number)
        model(**batch(model)).loss.backward()
        assert (model.get_input_embeddings().weight.grad is None) == in_backward
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    for hook in hooks:
        hook.remove()
    return optimizer


def assert_same_training(model, **options):
    twin, fresh = copy.deepcopy(model), copy.deepcopy(model)
    optimizer, in_backward = train(model, in_backward=False, **options), train(twin, in_backward=True, **options)
    names = [name for name, _ in model.named_parameters()]
    for name, one, other, first in zip(names, model.parameters(), twin.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(one, other), name
        assert not torch.equal(one, first) or not one.requires_grad, name
    state, expected = in_backward.state_dict(), optimizer.state_dict()
    assert state["param_groups"] == expected["param_groups"]
    assert state["state"].keys() == expected["state"].keys()
    assert all(str(state["state"][number]) == str(expected["state"][number]) for number in state["state"])


DYNAMICS = {
    "hamiltonian": rf.Hamiltonian(),
    "blended": rf.BlendedMidpoint("1/4"),
    "two evaluations": rf.TwoEvaluationMidpoint("1/2"),
}


@pytest.mark.parametrize("name", DYNAMICS)
@pytest.mark.parametrize("activations", ["store", "checkpoint", "rebuild"])
def test_the_same_weights_to_the_bit(name, activations):
    model = rf.make_reversible(tiny("llama"), DYNAMICS[name], activations)
    assert_same_training(model)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox", "opt", "mixtral"])
def test_tied_weights_and_biases(family):
    model = tiny(family, tie_word_embeddings=family != "gpt_neox", dropout=0.1)
    set_head_loss(model, HeadLoss(chunk=7))
    assert_same_training(rf.make_reversible(model, rf.BlendedMidpoint("1/2")))


@pytest.mark.parametrize("features", [("state", "update"), ("state", "previous_mlp"), ("state", "previous_update")])
def test_predictors_that_evaluate_the_layer_before(features):
    model = rf.make_reversible(tiny("llama"), rf.Midpoint())
    for predictor in add_update_predictors(model, PredictorForm(features)):
        for parameter in predictor.parameters():
            nn.init.normal_(parameter, std=0.05)
    assert_same_training(model)


def test_layers_that_share_their_weights():
    model = tiny("llama")
    first, *others = model.model.layers
    for layer in others:
        layer.mlp = first.mlp
    assert_same_training(rf.make_reversible(model, rf.Midpoint()))


def test_tiles_and_autocast():
    model = rf.make_reversible(tiny("llama"), rf.Midpoint())
    set_mlp_tiles(model, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_training(model)


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.Adafactor, AdamW8bit])
def test_other_optimizers_that_step_every_parameter_by_itself(optimizer_class):
    assert_same_training(rf.make_reversible(tiny("llama"), rf.Midpoint()), optimizer_class=optimizer_class)


def test_a_state_that_is_loaded_later_brings_its_learning_rate():
    """Loading a state gives the optimizer new groups."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    step_in_backward(optimizer)
    optimizer.load_state_dict(torch.optim.SGD([torch.ones(3)], lr=0.25).state_dict())
    weight.sum().backward()
    assert torch.equal(weight, torch.full((3,), 0.75))


def test_gradients_never_exist_together():
    model = rf.make_reversible(tiny("llama"), rf.Midpoint())
    optimizer = torch.optim.AdamW(model.parameters())
    held = []

    def count(*_):
        held.append(sum(parameter.grad is not None for parameter in model.parameters()))

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(count)
    step_in_backward(optimizer)
    model(**batch(model)).loss.backward()
    assert held == [1] * len(list(model.parameters()))


class WithLast(LlamaMLP):
    """Adds a parameter after everything that it keeps tensors for."""

    def forward(self, hidden):
        return super().forward(hidden) + self.last


@pytest.mark.parametrize("activations", ["store", "checkpoint", "rebuild"])
def test_a_weight_whose_gradient_is_complete_before_anything_was_needed_of_its_layer(activations):
    model = tiny("llama")
    for layer in model.model.layers:
        layer.mlp.__class__ = WithLast
        layer.mlp.last = nn.Parameter(torch.zeros(model.config.hidden_size))
    assert_same_training(rf.make_reversible(model, rf.Midpoint(), activations))


def test_a_weight_that_is_stepped_too_early_is_noticed(monkeypatch):
    monkeypatch.setattr(rebuild, "_rebuild_first", lambda *_: None)
    with pytest.raises(RebuildMismatchError):
        test_a_weight_whose_gradient_is_complete_before_anything_was_needed_of_its_layer("rebuild")


@pytest.mark.parametrize("kind", ["LBFGS", "own", "offloaded"])
def test_optimizers_that_may_need_all_gradients_are_refused(kind):
    own = type("Own", (torch.optim.SGD,), {"__module__": "elsewhere"})
    if kind == "offloaded":
        optimizer = CPUOffloadOptimizer.__new__(CPUOffloadOptimizer)  # the rest of it needs a GPU
    else:
        optimizer = {"LBFGS": torch.optim.LBFGS, "own": own}[kind](tiny("llama").parameters(), lr=1.0)
    with pytest.raises(ValueError, match="not known to update every parameter independently"):
        step_in_backward(optimizer)


IN_BACKWARD = {"training.optimizer_in_backward": True, "training.max_grad_norm": 0}


def test_a_run_ends_with_the_weights_of_one_that_steps_afterwards(tmp_path):
    results = {}
    for name, options in {"in": IN_BACKWARD, "after": {"training.max_grad_norm": 0}}.items():
        results[name] = run(tiny_recipe(tmp_path, {**options, "output": str(tmp_path / name)}))
    one, other = map(weights, results.values())
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert results["in"].metrics["validation_loss"] == results["after"].metrics["validation_loss"]


def test_a_run_resumes_from_its_checkpoint_to_the_same_weights(tmp_path):
    through = weights(run(tiny_recipe(tmp_path, {**IN_BACKWARD, "output": str(tmp_path / "through")})))
    recipe = tiny_recipe(tmp_path, IN_BACKWARD)
    finished = run(recipe)
    for path in (finished.directory / "metrics.json", finished.directory / "checkpoint-8"):
        path.unlink() if path.is_file() else shutil.rmtree(path)
    resumed = weights(run(recipe, resume=True))
    assert all(torch.equal(resumed[name], through[name]) for name in through)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"training.max_grad_norm": 1.0}, "set training.max_grad_norm to 0"),
        ({"training.gradient_accumulation_steps": 2}, "set training.gradient_accumulation_steps to 1"),
    ],
)
def test_what_needs_all_gradients_first_is_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        training_arguments(tiny_recipe(tmp_path, IN_BACKWARD | options))


def test_an_optimizer_of_the_trainer_that_is_not_known_is_refused(tmp_path):
    recipe = tiny_recipe(tmp_path, IN_BACKWARD | {"training.arguments.optim": "adafactor"})
    with pytest.raises(UserError, match="Adafactor is not known to update every parameter independently"):
        run(recipe)


@pytest.mark.parametrize("change", ["freeze", "write"])
def test_a_change_between_the_passes_is_refused_before_any_weight_is_stepped(change):
    model = rf.make_reversible(tiny("llama", dropout=0.1), rf.Midpoint())
    step_in_backward(torch.optim.SGD(model.model.layers.parameters(), lr=0.1))
    loss = model(**batch(model)).loss
    layer = model.model.layers[0]
    if change == "freeze":
        layer.mlp.up_proj.weight.requires_grad_(False)
    else:
        with torch.no_grad():
            layer.mlp.up_proj.weight.mul_(2)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RebuildMismatchError, match="Layer 0 is no longer what it was in the forward pass") as caught:
        loss.backward()
    assert "go back to a checkpoint" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_that_does_not_repeat_itself_after_others_were_stepped_says_so():
    model = rf.make_reversible(tiny("llama"), rf.Midpoint())
    step_in_backward(torch.optim.SGD(model.model.layers.parameters(), lr=0.1))
    calls = []
    model.model.layers[1].mlp.register_forward_hook(
        lambda module, inputs, output: output * (1 + len(calls)) if not calls.append(None) else None
    )
    with pytest.raises(RebuildMismatchError, match=r"[Ll]ayer 1 .*go back to a checkpoint"):
        model(**batch(model)).loss.backward()


def test_adafactor_takes_its_epsilon_from_the_first_parameter_of_a_group():
    weights = [nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))]
    with pytest.raises(ValueError, match=r"Adafactor takes eps\[0\] from the first parameter of a group"):
        step_in_backward(torch.optim.Adafactor(weights))
    step_in_backward(torch.optim.Adafactor(weights, eps=(1e-8, 1e-3)))
    step_in_backward(torch.optim.Adafactor([{"params": [weight]} for weight in weights]))


@pytest.mark.parametrize("share", [1.2, 4.0, 8.0])
def test_a_budget_that_stores_some_layers_steps_them_before_others_are_evaluated(share):
    model = tiny("llama", num_hidden_layers=8)
    rf.make_reversible(model, rf.Midpoint())
    smallest = rf.smallest_budget(model, *batch(model)["input_ids"].shape)
    rf.set_activations(model, rf.Budget(int(share * smallest)))
    assert_same_training(model)


@pytest.mark.parametrize("way", ["budget", "tiles", "rebuild"])
def test_only_a_tape_of_all_layers_says_that_none_was_stepped(way):
    model = rf.make_reversible(tiny("llama", num_hidden_layers=6), rf.Midpoint(), rf.Rebuild())
    if way == "budget":
        rf.set_activations(model, rf.Budget(8 * rf.smallest_budget(model, *batch(model)["input_ids"].shape)))
        model(**batch(model))
        model(**batch(model))
        assert 0 < rf.budget_report(model).stored < 6
    if way == "tiles":
        rf.set_activations(model, rf.Store())
        rf.set_mlp_tiles(model, 8)
    step_in_backward(torch.optim.SGD(model.parameters(), lr=0.1))
    loss = model(**batch(model)).loss
    last = model.model.layers[5].mlp.down_proj.weight
    before = last.detach().clone()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(2)
    with pytest.raises(rf.RebuildMismatchError) as caught:
        loss.backward()
    assert torch.equal(last, before) == (way == "rebuild")
    assert ("and no layer" in str(caught.value)) == (way == "rebuild")


def test_what_a_hook_counts_and_eval_without_dropout_are_no_changes():
    model = rf.make_reversible(tiny("llama"), rf.Midpoint())
    step_in_backward(torch.optim.SGD(model.model.layers.parameters(), lr=0.1))

    calls = []  # outside of the module, where nobody asks whether a call is counted twice
    model.model.layers[1].mlp.register_forward_pre_hook(lambda module, inputs: calls.append(module))
    loss = model(**batch(model)).loss
    model.eval()
    loss.backward()
