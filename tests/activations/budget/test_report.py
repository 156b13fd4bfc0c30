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
    assert str(report) == (
        "Of 24 layers, 12.5 are stored, 7.5 rebuilt and 4 computed from kept inputs, "
        "with the attention outputs of 3 of these kept; this uses 1 GiB of 2 GiB."
    )
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
    assert "The batch shape is new" in str(observed)
