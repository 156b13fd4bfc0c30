"""The comparison of the other tests notices what it is for."""

import pytest

import revformers as rf
from tests.distributed.comparing import compare, made


def test_a_policy_without_effect_is_noticed(monkeypatch):
    compare(0, lambda model: model, made(), split=False)
    monkeypatch.setattr(rf, "set_activations", lambda *_: None)
    with pytest.raises(AssertionError, match=r"evaluated \d times stored, and \d rebuilt"):
        compare(0, lambda model: model, made(), split=False)
