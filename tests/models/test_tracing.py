import pytest
import torch

import revformers as rf
from revformers.models.tracing import refuse_export, warn_of_uncompiled_layers


class Refusing(torch.nn.Module):
    def forward(self, hidden):
        refuse_export(self)
        return hidden + 1


def test_exporters_are_refused_by_name_and_nothing_else_is():
    assert Refusing()(torch.ones(1)) == 2
    with pytest.raises(rf.NotReversibleError, match=r"^torch\.jit\.trace cannot export Refusing"):
        torch.jit.trace(Refusing(), torch.ones(1))


def test_torch_export_is_refused(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    with pytest.raises(rf.NotReversibleError, match=r"^torch\.export cannot export Refusing"):
        Refusing()(torch.ones(1))


def test_what_torch_compile_leaves_alone_is_said():
    with pytest.warns(UserWarning, match=r"but not the layers; revformers\.compile_layers"):
        warn_of_uncompiled_layers()
