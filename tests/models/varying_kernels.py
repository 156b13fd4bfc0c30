"""A kernel as GPUs have them: its backward pass sums in no fixed order, unless PyTorch's mode is deterministic."""

import torch


class AtomicSum(torch.autograd.Function):
    """The identity, whose backward kernel returns other bits at every call unless PyTorch's mode is deterministic."""

    calls = 0
    only_first_varies = False
    deterministic_form = True

    @staticmethod
    def forward(context, values):
        return values.clone()

    @staticmethod
    def backward(context, gradient):
        if torch.are_deterministic_algorithms_enabled():
            if not AtomicSum.deterministic_form:
                # One of the operations that have none, on a CPU as well.
                torch.zeros(1).put_(torch.tensor([0]), torch.ones(1))
            return gradient
        AtomicSum.calls += 1
        if AtomicSum.only_first_varies:
            return gradient * (1 + 2**-20) if AtomicSum.calls == 1 else gradient
        return gradient * (1 + 2**-20 * AtomicSum.calls)


def varying_backward(monkeypatch, model, deterministic_form=True, only_first_varies=False, module=None):
    """Return the model with such a kernel behind the attention of its layer 2, or behind another module."""
    monkeypatch.setattr(AtomicSum, "calls", 0)
    monkeypatch.setattr(AtomicSum, "only_first_varies", only_first_varies)
    monkeypatch.setattr(AtomicSum, "deterministic_form", deterministic_form)
    module = model.model.layers[2].self_attn.o_proj if module is None else module
    module.register_forward_hook(lambda module, arguments, output: AtomicSum.apply(output))
    return model
