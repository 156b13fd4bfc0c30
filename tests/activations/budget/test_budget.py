import psutil
import pytest
import torch

from revformers.activations import check_activations
from revformers.activations.budget.budget import Budget, BudgetReport
from revformers.dynamics import Midpoint, Residual


@pytest.mark.parametrize("recompute", ["rebuild", "checkpoint"])
@pytest.mark.parametrize("size", ["20GiB", "1.5 GB", 123, 0.5, 1.0, 1e-9])
def test_the_text_of_a_budget_is_read_back(size, recompute):
    budget = Budget(size, recompute)
    assert Budget.parse(str(budget)) == budget
    check_activations(str(budget), Midpoint())


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
        (lambda: Budget.parse("budget"), "is written as"),
        (lambda: Budget.parse("budget:"), "is written as"),
        (lambda: Budget.parse("budget:1.5"), "above 0 and up to 1"),
        (lambda: Budget.parse("budget:1GiB:offload"), "not by 'offload'"),
        (lambda: check_activations("budget:plenty"), "such as 24GiB"),
        (lambda: check_activations("budgie"), "There is no activation policy 'budgie'"),
        (lambda: check_activations("budget:1GiB", Residual()), "no inverse"),
    ],
)
def test_mistakes_are_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_dynamics_without_an_inverse_can_be_checkpointed_within_a_budget():
    check_activations("budget:1GiB:checkpoint", Residual())


def test_the_report_says_what_was_chosen():
    report = BudgetReport(
        budget=2**31,
        kept=2**30,
        layers=24,
        stored=12.5,
        inputs_kept=4,
        attention_kept=3,
        attention_found=True,
    )
    assert str(report) == ("12.5 of 24 layers stored, inputs kept of 4, attention outputs kept of 3, 1 GiB of 2 GiB")
