import re

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

import revformers as rf
from lab.bench.workload import llama_config
from revformers.errors import UserError
from revformers.head.loss import HeadLoss, head_loss, set_head_loss
from revformers.head.teacher import FrozenCopy
from revformers.models.attach import add_update_predictors
from revformers.models.parts import require_reversible
from revformers.models.update_predictor import PredictorForm
from revformers.planning.devices import DEVICES, Machine
from revformers.planning.meter import peak_by_category
from revformers.planning.model_size import model_size
from revformers.planning.model_workload import workload_of
from revformers.training.fit_to_memory import _Search, fit_to_memory
from tests.tiny_models import tiny

BATCH = {"input_ids": torch.randint(256, (4, 512), generator=torch.Generator().manual_seed(0))}
SMALL = {"input_ids": torch.ones(2, 32, dtype=torch.int64)}
FOR_TILES = {"input_ids": torch.ones(2, 512, dtype=torch.int64)}
MIB = 2**20


def network(device="cpu"):
    torch.manual_seed(0)
    config = AutoConfig.for_model(**llama_config(8, 128, 256, 512))
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return rf.make_reversible(model, rf.Midpoint())


def reversible(family, dynamics=None):
    """A tiny network whose step is planned in little time."""
    options = {"max_seq_len": 512} if family == "MptForCausalLM" else {}
    model = tiny(family, dtype=torch.bfloat16, num_hidden_layers=2, **options)
    return rf.make_reversible(model, dynamics or rf.Midpoint())


def measured(model):
    """The peak of a whole step of AdamW on the CPU whose states exist, in bytes."""
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        model(**BATCH, labels=BATCH["input_ids"]).loss.backward()

    step()
    optimizer.step()
    step()  # under a budget, the second pass is the one that stores
    return peak_by_category(step, model, optimizer).total


@pytest.fixture(scope="module")
def without_limit():
    """What every way takes."""
    fitted = fit_to_memory(network("meta"), BATCH, "100GiB", host_memory="1GiB")
    rows = {str(row): row for row in (fitted.chosen, *fitted.others)}
    assert {"store", "rebuild", "offload"} <= rows.keys()
    assert sorted(rows.values(), key=lambda row: row.seconds) == list(rows.values())
    return rows


@pytest.mark.thorough
def test_no_budget_that_fits_is_faster_than_the_chosen_one():
    """Against budgets of a grid. What a first kept layer takes is partly memory that its second evaluation took."""
    model, machine = network(), Machine(DEVICES["h100"], 2**40, 0)
    search = _Search(model, workload_of(model, BATCH, "adamw")[0], model_size(model, "adamw"), machine)
    stored, rebuilt = (search._row(rf.Midpoint(), policy, None, False) for policy in (rf.Store(), rf.Rebuild()))
    memory = int(rebuilt.memory + 0.3 * (stored.memory - rebuilt.memory))
    others = [
        search._row(rf.Midpoint(), rf.Budget(int(size * (stored.memory - rebuilt.memory))), None, False)
        for size in (0.3, 0.4, 0.5)
    ]
    fastest = min(row.seconds for row in others if row.memory <= memory)
    assert fit_to_memory(model, BATCH, memory, device="h100").chosen.seconds <= fastest


@pytest.mark.thorough
def test_if_all_fits_all_is_stored():
    model = network()
    fitted = fit_to_memory(model, BATCH, "100GiB")
    assert fitted.chosen.activations == rf.Store()
    assert fitted.chosen.mlp_tile is None
    assert str(fitted).startswith("store: a predicted peak of")


@pytest.mark.thorough
@pytest.mark.parametrize("share", [0.9, 0.6, 0.3, 0.05])
def test_the_settings_are_the_fastest_that_fit_and_a_real_step_fits(without_limit, share):
    """Memories from little more than the least to little less than storing takes, against a measured step."""
    least = min(row.memory for row in without_limit.values() if not row.host)
    memory = int(least + share * (without_limit["store"].memory - least))
    model = network()
    fitted = fit_to_memory(model, BATCH, memory)
    assert all(row.memory > memory for row in fitted.others if row.seconds < fitted.chosen.seconds)
    assert fitted.chosen.activations != rf.Store() or fitted.chosen.mlp_tile is not None
    peak = measured(model)
    assert peak <= memory * 1.01 + 4 * MIB  # blocks of the CPU's kernels, which fused ones do not have
    assert rf.verify_gradients(model, BATCH).bit_exact


@pytest.mark.thorough
def test_inputs_go_to_the_host_if_it_has_memory(without_limit):
    memory = without_limit["offload"].memory + MIB
    assert fit_to_memory(network("meta"), BATCH, memory, host_memory="1GiB").chosen.activations == rf.Offload()
    assert fit_to_memory(network("meta"), BATCH, memory, host_memory=1000).chosen.activations != rf.Offload()


def test_nothing_is_offloaded_from_a_cpu():
    """There, the inputs of layers would stay in the memory that they are to leave."""
    model, none = reversible("llama"), reversible("llama")
    fitted = fit_to_memory(model, SMALL, "1GiB", host_memory="1GiB")
    assert "Nothing is offloaded: the model is on a CPU" in str(fitted)
    without = fit_to_memory(none, SMALL, "1GiB", host_memory="0")
    assert without.remarks == fit_to_memory(none, SMALL, "1GiB").remarks
    assert (fitted.chosen, fitted.others) == (without.chosen, without.others)
    assert all(row.activations != rf.Offload() for row in (fitted.chosen, *fitted.others))


@pytest.mark.parametrize(
    ("family", "words"),
    [("mixtral", "a part, MixtralTopKRouter,"), ("MptForCausalLM", "The MLP of MptBlock is not known")],
    ids=["experts", "unknown layout"],
)
def test_models_without_tiles_get_the_other_settings(family, words):
    fitted = fit_to_memory(reversible(family), FOR_TILES, "1GiB")
    assert fitted.chosen.activations == rf.Store()
    assert all(row.mlp_tile is None for row in (fitted.chosen, *fitted.others))
    assert re.search(f"Tiles were not compared: .*{words}", str(fitted))
    assert "Tiles were not compared" not in str(fit_to_memory(reversible("llama"), FOR_TILES, "1GiB"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: reversible("MptForCausalLM"), "where MptBlock splits into attention and MLP is not known"),
        (lambda: reversible("llama", rf.TwoEvaluationMidpoint("1/2")), "TwoEvaluationMidpoint"),
        (lambda: with_predictors(reversible("llama")), "the model has update predictors"),
    ],
    ids=["unknown layout", "two evaluations", "predictors"],
)
def test_models_without_branches_get_the_other_settings(make, words):
    model = make()
    dynamics = require_reversible(model).dynamics
    fitted = fit_to_memory(model, SMALL, "1GiB", may_step_by_branch=True)
    assert re.search(f"Steps by branch were not compared: .*{words}", str(fitted))
    assert {row.dynamics for row in (fitted.chosen, *fitted.others)} == {dynamics}


def with_predictors(model):
    add_update_predictors(model, PredictorForm(features=("state",)))
    return model


def test_a_head_loss_of_the_user_stays():
    model = reversible("llama")
    loss = HeadLoss(cross_entropy=0.5)
    set_head_loss(model, loss)
    assert "chunks of the usual size" not in str(fit_to_memory(model, SMALL, "1GiB"))
    assert head_loss(model) is loss
    set_head_loss(model, HeadLoss(chunk=7))
    assert "chunks of the usual size" in str(fit_to_memory(model, SMALL, "1GiB"))
    assert head_loss(model).chunk == 7
    set_head_loss(model, None)
    fit_to_memory(model, SMALL, "1GiB")
    assert head_loss(model) == HeadLoss(required=False)


ADAPTERS = {
    "few modules": (rf.Rebuild(), LoraConfig(r=4, target_modules=["q_proj"])),
    "dropout": (rf.Store(), LoraConfig(r=4, target_modules=["q_proj", "down_proj"], lora_dropout=0.1)),
    "DoRA": (rf.Rebuild(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], use_dora=True)),
    "saved modules": (rf.Store(), LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])),
    "ranks": (rf.Store(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 32})),
    "IA3": (rf.Rebuild(), IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])),
}


@pytest.mark.thorough
@pytest.mark.parametrize(("policy", "adapter"), ADAPTERS.values(), ids=ADAPTERS.keys())
def test_a_step_with_an_adapter_takes_what_was_predicted(policy, adapter):
    model = get_peft_model(network(), adapter).train()
    rf.set_activations(model, policy)
    set_head_loss(model, HeadLoss())
    workload, remarks = workload_of(model, BATCH, "adamw")
    assert remarks == ()
    machine = Machine(DEVICES["h100"], 2**40, 0)
    row = _Search(model, workload, model_size(model, "adamw"), machine)._row(rf.Midpoint(), policy, None, False)
    assert row.memory == pytest.approx(measured(model), rel=0.01)


def test_what_fits_nowhere_is_refused_with_the_least_that_would():
    with pytest.raises(
        UserError, match=r"4 x 512 tokens fits 10 MiB: the least, .*, takes .* MiB, of which .* weights"
    ):
        fit_to_memory(network(), BATCH, "10MiB")
    with pytest.raises(UserError, match=r"takes ([0-9.]+) MiB, of which ([0-9.]+) MiB are weights and opt") as error:
        fit_to_memory(network(), BATCH, "10MiB", may_step_in_backward=True)
    total, held = map(float, re.search(r"takes ([0-9.]+) MiB, of which ([0-9.]+) MiB", str(error.value)).groups())
    assert held < total, "its gradients are not held"


@pytest.mark.thorough
def test_the_network_changes_only_if_it_may(without_limit):
    least = min(row.memory for row in without_limit.values() if not row.host)
    model = network()
    with pytest.raises(UserError, match="fits"):
        fit_to_memory(model, BATCH, least - MIB // 2)
    assert require_reversible(model).dynamics == rf.Midpoint()
    in_backward = fit_to_memory(model, BATCH, least - MIB // 2, may_step_in_backward=True)
    assert in_backward.chosen.optimizer_in_backward
    assert "step_in_backward(optimizer)" in str(in_backward)
    assert require_reversible(model).dynamics == rf.Midpoint()
    by_branch = fit_to_memory(model, BATCH, least - MIB // 2, may_step_by_branch=True)
    assert require_reversible(model).dynamics == by_branch.chosen.dynamics == rf.Midpoint(granularity="branch")
    assert "step_in_backward" not in str(by_branch)


def taught(model):
    set_head_loss(model, HeadLoss(distillation=1.0, teacher=FrozenCopy(model)))
    return model


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"memory": "much"}, "A size is a number"),
        ({"memory": 0}, "A memory is a number of bytes"),
        ({"device": "abacus"}, "no data sheet of 'abacus'; choose one of a100"),
        ({"host_memory": -1}, "A memory is a number of bytes"),
        ({"model": rf.make_residual(network())}, "is an ordinary network"),
        ({"model": network().requires_grad_(False)}, "Nothing trains: every parameter is frozen"),
        ({"model": taught(network())}, "A step with a teacher cannot be planned"),
    ],
    ids=["size", "zero", "device", "host", "ordinary", "frozen", "teacher"],
)
def test_bad_input_is_refused(arguments, words):
    given = {"model": network(), "batch": BATCH, "memory": "1GiB"} | arguments
    with pytest.raises(ValueError, match=words):
        fit_to_memory(**given)
