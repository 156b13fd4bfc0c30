import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from revformers.activations.allocation import Allocation, StepCost, allocate

LAYER = StepCost(stored=100, recomputed=2, outputs=6, operations=50, attention_operations=10)


def spent(costs, choice, pair):
    """The bytes and the operations of a choice, added up step by step."""
    memory = pair if choice.first_stored else 0
    operations = 0
    for step, cost in enumerate(costs):
        if choice.stores(step):
            memory += cost.stored
            continue
        memory += cost.recomputed + (cost.outputs if choice.keeps_attention(step) else 0)
        operations += cost.operations - (cost.attention_operations if choice.keeps_attention(step) else 0)
    return memory, operations


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(0, 40), st.integers(0, 400))
def test_no_other_choice_recomputes_less(seed, steps, pair, room):
    draw = random.Random(seed)
    costs = []
    for _ in range(steps):
        attention = draw.randrange(2) * draw.randrange(1, 30)
        costs.append(
            StepCost(draw.randrange(60), draw.randrange(5), attention // 3, attention + draw.randrange(30), attention)
        )
    firsts = draw.sample(range(steps), draw.randrange(steps + 1))
    choice = allocate(costs, firsts, pair, room)
    others = [Allocation(*pair_) for pair_ in itertools.product([steps, *firsts], range(steps + 1))]
    affordable = [spent(costs, other, pair)[1] for other in others if spent(costs, other, pair)[0] <= room]
    if affordable:
        assert spent(costs, choice, pair)[0] <= room
        assert spent(costs, choice, pair)[1] == min(affordable)
    else:
        assert choice == Allocation(steps, steps)


def test_attention_outputs_come_first_where_they_spare_more_a_byte():
    costs = [LAYER] * 4
    assert allocate(costs, range(4), 10, 10 + 8 + 3 * 6) == Allocation(4, 1)
    assert allocate(costs, range(4), 10, 10 + 8 + 4 * 6 + 98) == Allocation(3, 0)


def test_layers_come_first_where_attention_spares_little():
    costs = [StepCost(stored=100, recomputed=2, outputs=60, operations=50, attention_operations=1)] * 4
    assert allocate(costs, range(4), 10, 10 + 6 + 100) == Allocation(3, 3)


def test_no_pair_is_kept_where_all_is_stored():
    assert allocate([LAYER] * 4, range(4), 1000, 400) == Allocation(0, 0)
