"""The budget of a reversible model: the report of its last forward pass, and the smallest budget that it accepts."""

from torch import nn

from revformers.activations.budget.budget import Budget, Recompute
from revformers.activations.budget.budgeted import smallest_budget as smallest_budget_of_steps
from revformers.activations.budget.report import BudgetReport
from revformers.models.discovery import unwrap
from revformers.models.parts import require_reversible


def budget_report(model: nn.Module) -> BudgetReport:
    """Return the report of the last forward pass that a reversible model ran under a `Budget`.

    Raises:
        ValueError: if the model is ordinary, or has not run a forward pass with gradients under a budget.

    """
    report = require_reversible(model).budget_report
    if report is None:
        raise ValueError(
            "No forward pass with gradients has run under a Budget; call revformers.set_activations(model, "
            'revformers.Budget("20GiB")), and then the model.'
        )
    return report


def smallest_budget(model: nn.Module, batch_size: int, sequence_length: int, recompute: Recompute = "rebuild") -> int:
    """Return the bytes that a forward pass keeps if it stores no activations; a `Budget` must be at least that large.

    Call it under autocast if the model is trained under autocast, where its states may have another format.

    Args:
        model: a reversible model.
        batch_size: sequences per batch.
        sequence_length: tokens per sequence, including padding.
        recompute: as in `Budget`.

    Raises:
        ValueError: if the model is ordinary, or its dynamics have no inverse.

    """
    reversible, inner = require_reversible(model), unwrap(model)
    elements = batch_size * sequence_length * inner.config.get_text_config(decoder=True).hidden_size
    weight = inner.get_input_embeddings().weight
    state_size = reversible.states.of_pass(weight.dtype, weight.device).dtype.itemsize
    sizes = elements, weight.element_size(), state_size
    return smallest_budget_of_steps(*sizes, reversible.steps, may_rebuild=Budget(1, recompute).needs_inverse)
