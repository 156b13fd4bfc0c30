"""Loss and gradients of ten tiny networks under every recurrence and activation policy, to the bit.

`golden_file` says how to write gradients.json anew. Bits depend on the processor and on PyTorch: elsewhere than on the
machine that wrote the file, loss and gradient norm are compared up to rounding, and the equality of all policies to the
bit, which holds everywhere.
"""

import copy
import hashlib
import math

import pytest
import torch

import revformers as rf
from tests.golden.golden_file import fingerprint, golden
from tests.golden.networks import DYNAMICS, NETWORKS, batch, build, policies

ROUNDING = {"float32": 1e-3, "bfloat16": 2e-2}
"""Relative difference that another processor may make."""


@pytest.fixture(autouse=True)
def one_thread():
    """How a sum is split among threads decides its last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def step(model, network, dynamics, policy):
    """Return the loss, the hash of the gradients and their norm, or the name of the error of a combination refused."""
    try:
        rf.make_reversible(model, dynamics, policy)
        model.zero_grad()
        if isinstance(policy, rf.Budget):
            model(**batch(network))  # the first pass of a batch shape is observed, and stores no layer
        torch.manual_seed(2)  # of dropout
        loss = model(**batch(network)).loss
        loss.backward()
    except ValueError as error:  # the library's own refusals are ValueErrors; anything else shall fail the test
        return type(error).__name__
    return loss.item().hex(), *gradients(model)


def gradients(model):
    """Return one hash over all gradients, by the names of their parameters, and their norm."""
    digest, squares = hashlib.sha256(), 0.0
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {parameter.grad is not None} {tuple(parameter.shape)} {parameter.dtype} ".encode())
        if parameter.grad is not None:
            digest.update(parameter.grad.contiguous().view(torch.uint8).numpy().tobytes())
            squares += parameter.grad.double().square().sum().item()
    return digest.hexdigest(), math.sqrt(squares)


def spent(model):
    """Return what a budget bought in the last forward pass, as numbers."""
    report = rf.budget_report(model)
    return [report.kept, report.stored, report.inputs_kept, report.attention_kept]


def examine(name, dtype, dynamics):
    """Return what the golden file shall hold of one network, type and recurrence; all policies must agree."""
    network = NETWORKS[name]
    model = build(network, dtype)
    outcomes, budgets = {}, {}
    room = network.room * getattr(torch, dtype).itemsize // 4
    for policy_name, policy in policies(room).items():
        outcomes[policy_name] = step(model, network, dynamics, policy)
        if "budget" in policy_name and not isinstance(outcomes[policy_name], str):
            budgets[policy_name] = spent(model)
    steps = {policy: outcome for policy, outcome in outcomes.items() if not isinstance(outcome, str)}
    assert len(set(steps.values())) <= 1, f"policies disagree: {steps}"
    refused = {policy: outcome for policy, outcome in outcomes.items() if isinstance(outcome, str)}
    found = dict(zip(("loss", "gradients", "gradient_norm"), next(iter(steps.values())), strict=True)) if steps else {}
    return found | {"refused": refused, "budgets": budgets}


def differences(expected, found, *, to_the_bit):
    """Return the names of the runs whose outcome is not the expected one."""
    if to_the_bit or expected.keys() != found.keys():
        return sorted(run for run in expected.keys() | found.keys() if expected.get(run) != found.get(run))
    return [run for run, outcome in found.items() if not near(expected[run], outcome, ROUNDING[run.split("/")[0]])]


def near(expected, found, rounding):
    """Whether two outcomes agree up to rounding."""
    if expected["refused"] != found["refused"] or expected.keys() != found.keys():
        return False
    if "loss" not in found:
        return True
    losses = (float.fromhex(outcome["loss"]) for outcome in (expected, found))
    norms = (outcome["gradient_norm"] for outcome in (expected, found))
    return math.isclose(*losses, rel_tol=rounding) and math.isclose(*norms, rel_tol=rounding)


@pytest.mark.parametrize(
    "name", [name if name == "llama" else pytest.param(name, marks=pytest.mark.thorough) for name in NETWORKS]
)
def test_loss_and_gradients_are_those_of_the_golden_file(name):
    found = {
        f"{dtype}/{dynamics}": examine(name, dtype, DYNAMICS[dynamics]())
        for dtype, recurrences in NETWORKS[name].runs.items()
        for dynamics in recurrences
    }
    expected, machine = golden("gradients.json", name, found)
    assert not differences(expected, found, to_the_bit=machine == fingerprint())


def test_a_coefficient_that_is_off_by_one_unit_in_its_last_place_is_noticed():
    one_unit = 1 + torch.finfo(torch.float32).eps
    right, wrong = (
        {"float32/midpoint": examine("llama", "float32", rf.Midpoint(0.5 * step))} for step in (1, one_unit)
    )
    assert not differences(right, {"float32/midpoint": examine("llama", "float32", rf.Midpoint())}, to_the_bit=True)
    assert differences(right, wrong, to_the_bit=True)
    assert not differences(right, wrong, to_the_bit=False)


@pytest.mark.parametrize("damage", ["loss", "gradient_norm", "refused"])
def test_what_another_processor_cannot_explain_is_noticed(damage):
    right = {"float32/midpoint": {"loss": (4.0).hex(), "gradients": "", "gradient_norm": 1.0, "refused": {}}}
    wrong = copy.deepcopy(right)
    wrong["float32/midpoint"][damage] = {"loss": (4.01).hex(), "gradient_norm": 1.01, "refused": {"store": "Error"}}[
        damage
    ]
    assert differences(right, wrong, to_the_bit=False)


def test_policies_that_disagree_are_noticed(monkeypatch):
    """One bit of one gradient under one policy is enough."""
    real, calls = step, []

    def damaged(model, *rest):
        loss, digest, norm = real(model, *rest)
        calls.append(digest)
        if len(calls) == 4:
            next(model.parameters()).grad.view(torch.int32)[5, 0] ^= 1
            digest, norm = gradients(model)
        return loss, digest, norm

    monkeypatch.setattr("tests.golden.test_gradients.step", damaged)
    with pytest.raises(AssertionError, match="policies disagree"):
        examine("llama", "float32", rf.Midpoint())
