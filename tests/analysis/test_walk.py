import pytest
import torch

import revformers as rf
from revformers.analysis.walk import differentiable_attention, step_back, step_forwards, walk
from tests.analysis.networks import linear_steps, matrices, of_tiny
from tests.tiny_models import batch


def test_a_walk_is_the_recurrence():
    (matrix,) = matrices(1, 3, 0.5)
    steps = linear_steps([matrix] * 4, rf.BlendedMidpoint(0.5, step_size=0.75))
    embedding = torch.ones(1, 1, 3, dtype=torch.float64)
    found = walk(steps, embedding, "zero")
    previous, current = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for state in found[2:]:
        previous, current = current, 0.5 * previous + 0.5 * current + 0.75 * (matrix @ current)
        assert torch.allclose(state.flatten(), current, rtol=1e-12)
    assert len(found) == 6
    assert torch.equal(walk(steps, embedding, "repeat")[0], embedding)


def test_steps_undo_each_other_in_exact_numbers():
    """In float64 with small dyadic numbers nothing is rounded."""
    step = rf.BlendedMidpoint(0.5).coefficients(0)
    previous, current, update = (torch.tensor([value], dtype=torch.float64) for value in (1.5, -0.25, 3.0))
    following = step_forwards(previous, current, update, step)
    assert following.item() == 0.5 * 1.5 + 0.5 * -0.25 + 3.0
    assert step_back(current, following, update, step).item() == 1.5


@pytest.mark.parametrize("dynamics", [rf.Residual(), rf.Leapfrog(0.5), rf.Hamiltonian()])
def test_a_walk_ends_where_the_model_does(dynamics):
    model, embedding, steps = of_tiny(dynamics=dynamics)
    ids = batch(model)["input_ids"][:1, :5]
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        end = walk(steps, embedding, dynamics.start)[-1]
        head = model.get_output_embeddings()(model.base_model.final_layer_norm(end))
    assert torch.allclose(head, logits, rtol=1e-6, atol=1e-6)  # the model's states are in fixed point
    assert len(steps) == dynamics.steps_per_layer * model.config.num_hidden_layers


def test_attention_has_a_forward_derivative_in_the_block():
    from torch.autograd import forward_ad

    q = torch.randn(1, 2, 4, 8)

    def derivative():
        with torch.no_grad(), forward_ad.dual_level():
            dual = forward_ad.make_dual(q, torch.ones_like(q))
            result = torch.nn.functional.scaled_dot_product_attention(dual, q, dual)
            return forward_ad.unpack_dual(result).tangent

    with pytest.raises((NotImplementedError, RuntimeError)):
        derivative()
    with differentiable_attention():
        assert derivative().shape == q.shape
