import pytest
import torch

import revformers as rf
from revformers.engine.proof.verdicts import Verdicts


def wrong():
    return torch.tensor(False), lambda: rf.RebuildMismatchError("Layer 7 differs")


@pytest.mark.parametrize("at_once", [True, False])
def test_outside_of_a_backward_pass_a_result_is_looked_at_when_it_comes(at_once):
    with pytest.raises(rf.RebuildMismatchError, match="Layer 7"):
        Verdicts(at_once=at_once).add(*wrong())


@pytest.mark.parametrize("at_once", [True, False])
def test_inside_of_one_it_is_looked_at_once_or_at_its_end(at_once):
    verdicts, seen = Verdicts(at_once=at_once), []

    def below(gradient):
        verdicts.add(*wrong())
        seen.append("gone on" if verdicts.are_waiting else "looked")

    leaf = torch.ones(2, requires_grad=True)
    hidden = leaf * 2
    hidden.register_hook(below)
    with pytest.raises(rf.RebuildMismatchError, match="Layer 7"):
        hidden.sum().backward()
    assert seen == ([] if at_once else ["gone on"])
    assert not verdicts.are_waiting


def test_without_results_there_is_nothing_to_look_at():
    verdicts = Verdicts(at_once=False)
    verdicts.look()
    verdicts.add(torch.tensor(True), lambda: AssertionError("equal results have no error"))
