import dataclasses
import itertools
import random

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from revformers.activations.budget.allocation import Allocation, StepCost, allocate

LAYER = StepCost(
    stored=100,
    input=20,
    side_information=2,
    outputs=6,
    operations=50,
    attention_operations=10,
)


def spent(costs, choice, pair):
    """The bytes and the operations of a choice, added up step by step."""
    memory = pair if choice.rebuilds else 0
    operations = 0
    for step, cost in enumerate(costs):
        if choice.stores(step):
            memory += cost.stored
            continue
        kept = cost.side_information if choice.rebuilds else cost.input
        memory += kept + (cost.outputs if choice.keeps_attention(step) else 0)
        operations += cost.operations - (cost.attention_operations if choice.keeps_attention(step) else 0)
    return memory, operations


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 40), st.integers(0, 400), st.booleans())
def test_no_other_choice_recomputes_less(seed, steps, pair, room, may_rebuild):
    draw = random.Random(seed)
    costs = []
    for _ in range(steps):
        attention = draw.randrange(2) * draw.randrange(1, 30)
        costs.append(
            StepCost(
                draw.randrange(60),
                draw.randrange(20),
                draw.randrange(5),
                attention // 3,
                attention + draw.randrange(30),
                attention,
            )
        )
    others = [
        Allocation(rebuilds, first, start)
        for rebuilds, first, start in itertools.product((True, False), range(steps + 1), range(steps + 1))
        if (may_rebuild and first) or not rebuilds
    ]
    affordable = [spent(costs, other, pair)[1] for other in others if spent(costs, other, pair)[0] <= room]
    assume(affordable)
    choice = allocate(costs, pair, room, may_rebuild=may_rebuild)
    assert choice in others
    assert spent(costs, choice, pair)[0] <= room
    assert spent(costs, choice, pair)[1] == min(affordable)


def choose(layer, room, pair=10):
    return allocate([layer] * 4, pair, room, may_rebuild=True)


def test_attention_outputs_come_first_where_they_spare_more_a_byte():
    assert choose(LAYER, 10 + 8 + 3 * 6) == Allocation(True, 4, 1)
    assert choose(LAYER, 10 + 8 + 4 * 6) == Allocation(True, 4, 0)


def test_then_layers_and_inputs_that_spare_nothing_are_not_kept():
    assert choose(LAYER, 10 + 8 + 4 * 6 + 18) == Allocation(True, 4, 0)
    assert choose(LAYER, 10 + 3 * (2 + 6) + 100) == Allocation(True, 3, 0)


def test_layers_come_first_where_attention_spares_little():
    layer = dataclasses.replace(LAYER, outputs=60, attention_operations=1)
    assert choose(layer, 10 + 6 + 100) == Allocation(True, 3, 3)


def test_no_pair_is_kept_where_nothing_is_rebuilt():
    assert choose(LAYER, 400, pair=1000) == Allocation(False, 0, 0)
    assert choose(LAYER, 4 * 20, pair=1000) == Allocation(False, 4, 4)
