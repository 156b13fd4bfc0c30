import pytest
import torch

import revformers as rf
from revformers.engine.field import OtherEvaluationError
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
