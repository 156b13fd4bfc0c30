import json

from lab import REPOSITORY
from lab.studies.plan_advice import cases
from revformers.planning.devices import DEVICES

RESULT = REPOSITORY / "lab/results/plan-advice.json"


def test_the_committed_result_has_the_cases_of_the_study():
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"]
    shown = [(row["case"], row["memory"], row["host"], row["link"]) for row in rows]
    assert shown == [(case.name, case.memory, case.host, case.link) for case in cases()]
    lengths = [row["plan"]["sequence_length"] for row in rows]
    assert lengths == [case.length for case in cases()]


def test_a_case_is_planned_for_its_machine():
    machines = [case.machine() for case in cases()]
    assert {machine.host_memory for machine in machines} >= {0, None, 4 * 2**30}, "none, unknown and little"
    slow = [machine.device.link for machine in machines if machine.device != DEVICES["h100"]]
    assert slow == [5 * 10**9]


def test_the_wide_shape_is_that_of_llama_8b():
    """8,030,261,248 parameters by the model's card."""
    size = json.loads(RESULT.read_text(encoding="utf-8"))["rows"][0]["plan"]["size"]
    assert size["parameters"] == 8_030_261_248
