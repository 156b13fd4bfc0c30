import revformers as rf
from tests.activations.kept import Between, between_the_passes
from tests.engine.network import DEPTH


def test_every_activation_is_kept_and_nothing_is_evaluated_again():
    assert between_the_passes(rf.Store()) == Between(DEPTH, DEPTH, evaluations=DEPTH)
    assert not rf.Store().evaluates_again
    rf.Store().check(rf.Residual())
