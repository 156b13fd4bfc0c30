import dataclasses

import pytest

from lab.docs.tables import result
from revformers.conversion.allocation import USUAL_BITS
from revformers.planning.choose import NEAR_BITS, candidates, choose, fewest_bits
from revformers.planning.cost import SetupCost
from revformers.planning.setups import rebuild
from revformers.planning.timeline import MemoryByCategory
from tests.planning.rows import SETUPS, row

CHECKPOINT = row("checkpoint", 4, time=1.2)


def test_near_is_what_a_conversion_gives_by_default():
    assert NEAR_BITS == USUAL_BITS  # planning and conversion do not import each other


def test_more_bits_never_win_because_they_need_tiles():
    """A tile lowers the peak of a row that needs it, so its context may be the longer one."""
    few, more = row("rebuild", 1, 2048, 1.3, bits=2), row("rebuild", 1, 4096, 1.4, bits=4)
    tiled = dataclasses.replace(more, setup=dataclasses.replace(more.setup, mlp_tile=1024))
    for rows in ([few, tiled], [tiled, few]):
        assert choose(rows, host_is_known=False) is fewest_bits(rows) is few


def test_more_bits_and_budgets_are_not_chosen_where_the_fewest_do_not_fit():
    assert choose([row("rebuild", 0, bits=0), row("budget", 4, bits=0)], host_is_known=True) is None


ADVICE = {
    ("8B, all weights, 8,192 tokens", "80GiB", "400GiB", None): "offload",
    ("8B, all weights, 8,192 tokens", "80GiB", "4GiB", None): "rebuild 0",
    ("8B, all weights, 8,192 tokens", "80GiB", "400GiB", "5GB"): "rebuild 0",
    ("8B, all weights, 8,192 tokens", "80GiB", "unknown", None): "rebuild 0",
    ("8B, all weights, 8,192 tokens", "141GiB", "400GiB", None): "store",
    ("3 layers of it, 8,192 tokens", "18GiB", "400GiB", None): "checkpoint",
    ("8B, LoRA, 131,072 tokens", "80GiB", "400GiB", None): "offload",
    ("8B, LoRA, 131,072 tokens", "80GiB", "none", None): "checkpoint, tiled",
    ("8B, LoRA, 131,072 tokens", "60GiB", "none", None): "rebuild 2, tiled",
    ("8B, LoRA, 1,048,576 tokens", "400GiB", "200GiB", None): "rebuild 2, tiled",
    ("48 layers of width 1,024, 2,048 tokens", "8GiB", "400GiB", None): "offload",
    ("48 layers of width 1,024, 2,048 tokens", "8GiB", "none", None): "rebuild 0",
}
"""What the study should advise for each of its models and machines."""

CASES = result("plan-advice")["rows"]


def planned(figures):
    figures = dict(figures)
    name, bits, tile = (figures.pop(key) for key in ("name", "bits", "mlp_tile"))
    setup = dataclasses.replace(SETUPS.get(name) or rebuild(bits), mlp_tile=tile)
    return SetupCost(setup, **figures | {"memory": MemoryByCategory(**figures["memory"])})


def test_the_study_has_all_cases():
    assert [tuple(case[key] for key in ("case", "memory", "host", "link")) for case in CASES] == list(ADVICE)


@pytest.mark.parametrize(("case", "advice"), zip(CASES, ADVICE.values(), strict=False))
def test_the_rows_of_the_study_lead_to_the_right_advice(case, advice):
    plan = case["plan"]
    rows = [planned(figures) for figures in plan["setups"]]
    of_adapter = plan["size"]["trained"] < plan["size"]["parameters"]
    chosen = choose(candidates(rows, pretrained=of_adapter), host_is_known=plan["host_memory"] is not None)
    assert rows[plan["chosen"]] == chosen
    (name, bits, tile) = (plan["setups"][plan["chosen"]][key] for key in ("name", "bits", "mlp_tile"))
    assert f"{name}{'' if bits is None else f' {bits}'}{', tiled' if tile else ''}" == advice


def test_rows_in_tiles_can_be_compared():
    for case in CASES:
        tiles = {figures["mlp_tile"] for figures in case["plan"]["setups"]} - {None}
        assert len(tiles) <= 1
        assert case["plan"]["setups"][0]["mlp_tile"] is None, "storing is not tiled"
