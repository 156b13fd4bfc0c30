"""Dunnett's test against Student's, published critical values and a simulation."""

import numpy as np
import pytest
from scipy.stats import t, ttest_rel

from lab.docs.many_to_one import compare_with_control, critical_value


def test_one_treatment_gives_the_paired_test_of_student():
    values = {"control": [5.0, 6.0, 5.5, 5.2], "treatment": [5.25, 6.75, 5.5, 5.6]}
    comparison = compare_with_control(values, "control")
    reference = ttest_rel(values["treatment"], values["control"])
    assert comparison.differences["treatment"] / comparison.standard_error == pytest.approx(reference.statistic)
    assert comparison.threshold == pytest.approx(t.ppf(0.975, 3), abs=1e-4)


@pytest.mark.parametrize(("comparisons", "degrees", "published"), [(2, 10, 2.57), (5, 20, 2.73), (9, 20, 2.95)])
def test_critical_values_are_the_published_ones(comparisons, degrees, published):
    # Dunnett 1964, New tables for multiple comparisons with a control, two-sided, 5 %.
    assert critical_value(comparisons, degrees, 0.05) == pytest.approx(published, abs=0.006)


def test_false_findings_are_as_rare_as_promised_however_blocks_differ():
    drawn = np.random.default_rng(1)
    findings = 0
    for _ in range(2000):
        table = drawn.normal(size=(10, 3)) + 5 * drawn.normal(size=3)
        comparison = compare_with_control({str(arm): values for arm, values in enumerate(table)}, "0")
        findings += any(map(comparison.sign, comparison.differences))
    assert 0.03 < findings / 2000 < 0.07


def test_a_difference_beyond_the_threshold_has_a_sign():
    control = np.array([5.0, 6.0, 5.5])
    noise = {"low": [0.01, 0.0, -0.01], "same": [0.0, 0.01, -0.01], "high": [-0.01, 0.0, 0.01]}
    means = {"low": -1.0, "same": 0.0, "high": 1.0}
    values = {name: control + means[name] + noise[name] for name in noise}
    comparison = compare_with_control({"control": control, **values}, "control")
    assert {name: comparison.sign(name) for name in noise} == {"low": -1, "same": 0, "high": 1}


@pytest.mark.parametrize(
    "values", [{"control": [1.0, 2.0]}, {"control": [1.0], "a": [2.0]}, {"a": [1, 2], "b": [2, 3]}]
)
def test_without_treatments_blocks_or_a_control_there_is_no_comparison(values):
    assert compare_with_control(values, "control") is None
