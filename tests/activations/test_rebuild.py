import pytest

import revformers as rf
from tests.activations.kept import Between, between_the_passes
from tests.engine.network import DEPTH


def test_nothing_of_a_layer_is_kept():
    assert between_the_passes(rf.Rebuild()) == Between(0, 0, evaluations=2 * DEPTH)
    assert rf.Rebuild().evaluates_again


def test_dynamics_without_an_inverse_are_refused():
    rf.Rebuild().check(rf.Midpoint())
    with pytest.raises(ValueError, match="Residual has no inverse"):
        rf.Rebuild().check(rf.Residual())
