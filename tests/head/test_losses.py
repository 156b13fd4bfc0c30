import pytest
import torch
from torch.nn import functional

from revformers.head.losses import cross_entropy_sum, divergence_sum


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_cross_entropy_is_the_sum_of_negative_log_probabilities():
    logits, targets = random(5, 7), torch.tensor([0, 6, 2, 2, 3])
    reference = -logits.softmax(-1)[torch.arange(5), targets].log().sum()
    assert torch.allclose(cross_entropy_sum(logits, targets), reference, atol=1e-12, rtol=0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_divergence_is_that_of_the_teacher_from_the_student(temperature):
    logits, teacher = random(5, 7), random(5, 7, seed=1)
    p, q = (teacher / temperature).softmax(-1), (logits / temperature).softmax(-1)
    reference = temperature**2 * (p * (p.log() - q.log())).sum()
    assert torch.allclose(divergence_sum(logits, teacher, temperature), reference, atol=1e-12, rtol=0)
    assert not torch.allclose(divergence_sum(teacher, logits, temperature), reference)
    assert divergence_sum(logits, logits + 2, temperature).abs() < 1e-12


def test_temperature_hardly_changes_the_size_of_the_gradient():
    """For small logits the gradient is (student - teacher) / vocabulary at any temperature (Hinton et al., eq. 4)."""
    teacher = 0.01 * random(5, 7, seed=1)
    for temperature in (1.0, 10.0):
        logits = (0.01 * random(5, 7)).requires_grad_()
        divergence_sum(logits, teacher, temperature).backward()
        centred = (logits - teacher).detach()
        expected = (centred - centred.mean(-1, keepdim=True)) / 7
        assert torch.allclose(logits.grad, expected, atol=3e-5)


def test_half_precision_logits_are_summed_in_float32():
    logits, teacher = random(64, 7, dtype=torch.bfloat16), random(64, 7, seed=1, dtype=torch.bfloat16)
    targets = torch.arange(64) % 7
    for loss, reference in (
        (cross_entropy_sum(logits, targets), functional.cross_entropy(logits.double(), targets, reduction="sum")),
        (divergence_sum(logits, teacher, 2.0), divergence_sum(logits.double(), teacher.double(), 2.0)),
    ):
        assert loss.dtype == torch.float32
        assert torch.allclose(loss.double(), reference, rtol=1e-5)
