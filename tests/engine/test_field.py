from dataclasses import dataclass
from functools import partial, wraps

import pytest
import torch
from torch import nn

import revformers as rf
from revformers.engine.field import OtherEvaluationError, modules_of, parts_of
from revformers.engine.tape import Tape
from revformers.engine.ticket import kept


@pytest.mark.parametrize("error", [OtherEvaluationError, ValueError])
def test_a_field_says_that_its_second_evaluation_is_not_its_first(error):
    calls = []

    def field(hidden):
        calls.append(None)
        if len(calls) > 1:
            raise error("runs another kernel")
        return hidden.sin()

    hidden = torch.randn(1, 2, 3, requires_grad=True)
    update = Tape.without_states(hidden.device).evaluate("layer 4", None, field, hidden, keep=kept)
    expected = rf.RebuildMismatchError if error is OtherEvaluationError else ValueError
    with pytest.raises(expected, match="Layer 4 runs another" if error is OtherEvaluationError else "^runs another"):
        update.sum().backward()


@dataclass
class Call:
    module: nn.Module
    others: dict


def test_the_modules_of_a_field_are_found_where_it_holds_them():
    one, two, three, four = (nn.Linear(1, 1) for _ in range(4))
    call = Call(one, {"others": two})

    @wraps(three)
    def wrapped(hidden):
        return hidden

    field = partial(partial(lambda *_, **__: None, call), wrapped, key=four)
    assert list(modules_of(field)) == [one, two, three, four]
    assert list(modules_of([one])) == [], "and nowhere else"


def test_the_arguments_of_a_field_are_among_its_parts():
    layer, mask = nn.Linear(1, 1), torch.ones(1)
    field = partial(print, Call(layer, {"mask": mask, "cache": None}))
    assert list(parts_of(field)) == [print, layer, mask, None]
