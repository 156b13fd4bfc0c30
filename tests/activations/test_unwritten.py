import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention

import revformers as rf
from revformers.activations import rebuild
from revformers.activations.ticket import SavedTensor
from revformers.activations.unwritten import unwritten_tickets
from tests.tiny_models import batch, tiny


def test_the_log_sum_exp_of_a_fused_kernel_is_found():
    hidden = torch.randn(2, 4, 10, 8, requires_grad=True) * 1
    tickets = []

    def pack(tensor):
        tickets.append(SavedTensor(None, 0, tensor))
        return tickets[-1]

    with saved_tensors_hooks(pack, SavedTensor.redeem):
        update = scaled_dot_product_attention(hidden.sin(), hidden, hidden).cos()
    (found,) = unwritten_tickets(update, hidden)
    assert found in tickets
    assert found.shape == (2, 4, 10)


@pytest.mark.parametrize("left_out", [True, False])
def test_what_lies_in_it_is_not_compared_where_kernels_leave_it(monkeypatch, left_out):
    """On a CPU, whose kernel writes all of it, as if it were another device."""
    model = rf.make_reversible(tiny("llama"), rf.Midpoint())
    if left_out:
        monkeypatch.setattr(
            rebuild.Tape,
            "_unwritten",
            staticmethod(
                lambda record, update, hidden: {
                    number
                    for number, reference in enumerate(record.tickets)
                    if reference() in set(unwritten_tickets(update, hidden))
                }
            ),
        )
    loss = model(**batch(model)).loss
    add = rebuild.LaterEvidence.add

    def garbage(self, tensor):
        is_log_sum_exp = tensor.shape == (2, 4, 16) and tensor.dtype == torch.float32
        add(self, torch.full_like(tensor, 7.0) if is_log_sum_exp else tensor)

    monkeypatch.setattr(rebuild.LaterEvidence, "add", garbage)
    if left_out:
        loss.backward()
    else:
        with pytest.raises(rf.RebuildMismatchError):
            loss.backward()
