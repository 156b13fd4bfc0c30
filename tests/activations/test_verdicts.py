import pytest
import torch
from torch import nn

import revformers as rf
from revformers.activations.situation import Situation
from revformers.activations.verdicts import Verdicts, mismatch


def wrong():
    return torch.tensor(False), lambda: mismatch("Layer 7 differs", Situation(nn.Linear(2, 2)))


@pytest.mark.parametrize("at_once", [True, False])
def test_outside_of_a_backward_pass_a_result_is_looked_at_when_it_comes(at_once):
    with pytest.raises(rf.RebuildMismatchError, match="Layer 7"):
        Verdicts(at_once=at_once).add(*wrong())


@pytest.mark.parametrize("at_once", [True, False])
def test_inside_of_one_it_is_looked_at_once_or_at_its_end(at_once):
    verdicts, seen = Verdicts(at_once=at_once), []

    def below(gradient):
        verdicts.add(*wrong())
        seen.append("gone on")

    leaf = torch.ones(2, requires_grad=True)
    hidden = leaf * 2
    hidden.register_hook(below)
    with pytest.raises(rf.RebuildMismatchError, match="Layer 7"):
        hidden.sum().backward()
    assert seen == ([] if at_once else ["gone on"])
