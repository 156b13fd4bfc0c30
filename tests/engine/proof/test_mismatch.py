import torch
from torch import nn

from revformers.engine.proof.mismatch import mismatch
from revformers.engine.proof.situation import Situation


def test_a_message_names_the_first_changes_and_counts_the_rest_and_says_what_to_do():
    module = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    situation = Situation(module)
    unseen = str(mismatch("layer 7 differs", situation))
    assert unseen.startswith("Layer 7 differs, so the gradients would be wrong. Look at what the modules do not show: ")
    module.requires_grad_(False)
    changed = str(mismatch("layer 7 differs", situation))
    assert ". Since the forward pass 0.weight [2, 2] was frozen; 0.bias [2] was frozen; " in changed
    assert (
        "; and 4 more changes. Call backward before such a change, or undo it and repeat the forward pass." in changed
    )
    assert "Look at" not in changed


def test_a_setting_may_be_no_cause_and_weights_that_were_stepped_are_none():
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    situation = Situation(module)
    module.eval()
    assert "modules were switched to eval(). Call backward before" in str(mismatch("it differs", situation))
    assert "If that is not why: Look at what the modules do not show" in str(mismatch("it differs", situation))
    module.train()
    module[0].weight.register_post_accumulate_grad_hook(lambda parameter: None)
    with torch.no_grad():
        module[0].weight.add_(1)
    assert "0.weight [2, 2] was changed" in str(mismatch("it differs", situation))
    late = str(mismatch("it differs", situation, late=True))
    assert "was changed" not in late
    assert "may have stepped weights already: go back to a checkpoint" in late
    before = str(mismatch("it differs", situation, before_all=True))
    assert "may have stepped the head already, and no layer" in before


def test_a_layer_that_writes_to_its_own_weights_is_told_so():
    module = nn.Linear(2, 2)
    before = Situation(module, settings=False)
    with torch.no_grad():
        module.weight.add_(1)
    assert "The layer itself writes to weight when it is evaluated" in str(mismatch("it differs", before.now()))
    assert "The layer itself" not in str(mismatch("it differs", Situation(module)))
