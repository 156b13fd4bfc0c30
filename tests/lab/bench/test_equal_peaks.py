from lab.bench.equal_peaks import budgets_at_peaks


def point(value, arm, memory=None):
    return {"value": value, "arm": arm, "memory": memory}


def test_a_budget_stands_beside_the_arm_whose_peak_it_has():
    rival, budget = point("every:2", "plain_every:2"), point("every:2", "budget")
    others = [point("every:2", "rebuild"), point("2GiB", "budget"), point("every:2", "budget", "80GiB")]
    assert budgets_at_peaks({"points": [rival, budget, *others]}) == [(rival, budget)]
