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
    memory = pair if choice.first_with_input else 0
    operations = 0
    for step, cost in enumerate(costs):
        if choice.stores(step):
            memory += cost.stored
            continue
        kept = cost.side_information if choice.rebuilds(step) else cost.input
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
    first_stored = (steps, *draw.sample(range(steps), draw.randrange(steps + 1)))
    first_with_input = (0, *draw.sample(range(1, steps + 1), draw.randrange(steps + 1))) if may_rebuild else (0,)
    others = [
        Allocation(kept, first, start)
        for kept, first, start in itertools.product(first_with_input, first_stored, range(steps + 1))
        if kept <= first
    ]
    affordable = [spent(costs, other, pair)[1] for other in others if spent(costs, other, pair)[0] <= room]
    assume(affordable)
    choice = allocate(tuple(costs), pair, room, first_stored, first_with_input)
    assert choice in others
    assert spent(costs, choice, pair)[0] <= room
    assert spent(costs, choice, pair)[1] == min(affordable)


ALL = (4, 3, 2, 1, 0)


def choose(layer, room, pair=10):
    return allocate((layer,) * 4, pair, room, ALL, ALL)


def test_attention_outputs_come_first_where_they_spare_more_a_byte():
    assert choose(LAYER, 10 + 8 + 3 * 6) == Allocation(4, 4, 1)
    assert choose(LAYER, 10 + 8 + 4 * 6) == Allocation(4, 4, 0)


def test_then_layers_and_inputs_that_spare_nothing_are_not_kept():
    assert choose(LAYER, 10 + 8 + 4 * 6 + 18) == Allocation(4, 4, 0)
    assert choose(LAYER, 10 + 3 * (2 + 6) + 100) == Allocation(3, 3, 0)
    assert choose(LAYER, 10 + 2 * (2 + 6) + 20 + 6 + 100) == Allocation(3, 3, 0)


def test_layers_come_first_where_attention_spares_little():
    layer = dataclasses.replace(LAYER, outputs=60, attention_operations=1)
    assert choose(layer, 10 + 6 + 100) == Allocation(3, 3, 3)


def test_no_pair_is_kept_where_nothing_is_rebuilt():
    assert choose(LAYER, 400, pair=1000) == Allocation(0, 0, 0)
    assert choose(LAYER, 4 * 20, pair=1000) == Allocation(0, 4, 4)
