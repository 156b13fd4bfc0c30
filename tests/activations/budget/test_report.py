from revformers.activations.budget.report import BudgetReport


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
    observed = BudgetReport(
        budget=2**31,
        kept=2**20,
        layers=2,
        stored=0,
        inputs_kept=0,
        attention_kept=0,
        attention_found=False,
        observed=True,
    )
    assert "observed a new batch shape" in str(observed)
