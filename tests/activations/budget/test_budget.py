import psutil
import pytest
import torch

from revformers.activations import parse_policy
from revformers.activations.budget.budget import Budget
from revformers.dynamics import Midpoint, Residual
from revformers.engine.states import StatePair


@pytest.mark.parametrize("recompute", ["rebuild", "checkpoint"])
@pytest.mark.parametrize("size", ["20GiB", "1.5 GB", 123, 0.5, 1.0, 1e-9])
def test_the_text_of_a_budget_is_read_back(size, recompute):
    budget = Budget(size, recompute)
    assert parse_policy(str(budget)) == budget
    budget.check(Midpoint())


def test_sizes_in_bytes():
    assert Budget("20MiB").bytes_on(torch.device("cpu")) == 20 * 2**20
    assert Budget(7).bytes_on(torch.device("cpu")) == 7


def test_a_share_is_one_of_the_memory_that_is_free_now(monkeypatch):
    free = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    assert Budget(0.25).bytes_on(torch.device("cpu")) == 250
    with pytest.raises(ValueError, match="free memory of meta devices is not known"):
        Budget(0.25).bytes_on(torch.device("meta"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Budget("plenty"), "such as 24GiB"),
        (lambda: Budget(0), "takes bytes"),
        (lambda: Budget(True), "takes bytes"),
        (lambda: Budget(None), "takes bytes"),
        (lambda: Budget(1.5), "above 0 and up to 1"),
        (lambda: Budget(0.0), "above 0 and up to 1"),
        (lambda: Budget(float("nan")), "above 0 and up to 1"),
        (lambda: Budget("1GiB", "offload"), "not by 'offload'"),
        (lambda: parse_policy("budget"), "is written as"),
        (lambda: parse_policy("budget:"), "is written as"),
        (lambda: parse_policy("budget:1.5"), "above 0 and up to 1"),
        (lambda: parse_policy("budget:1GiB:offload"), "not by 'offload'"),
        (lambda: parse_policy("budget:plenty"), "such as 24GiB"),
        (lambda: parse_policy("budgie"), "There is no activation policy 'budgie'"),
        (lambda: parse_policy("budget:1GiB").check(Residual()), "no inverse"),
    ],
)
def test_mistakes_are_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_dynamics_without_an_inverse_can_be_checkpointed_within_a_budget():
    parse_policy("budget:1GiB:checkpoint").check(Residual())


def test_every_pass_has_the_budget_of_the_time_when_it_begins(monkeypatch):
    begin = Budget(0.5).bind(1)
    for available in (1000, 600):
        free = psutil.virtual_memory()._replace(available=available)
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: free)
        report = begin(StatePair.empty(torch.device("cpu")), Midpoint().steps(4)).report
        assert (report.budget, report.layers, report.kept) == (available // 2, 4, 0)
