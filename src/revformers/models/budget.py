"""What a budget chose, and the least that it may be."""

from torch import nn

from revformers.activations.budget.budget import Recompute
from revformers.activations.budget.budgeted import smallest_budget as smallest_budget_of_steps
from revformers.activations.budget.report import BudgetReport
from revformers.models.discovery import unwrap
from revformers.models.state import require_reversible


def budget_report(model: nn.Module) -> BudgetReport:
    """Return what the last forward pass of a reversible model chose under its `Budget`.

    Raises:
        ValueError: for an ordinary model, or one that had no forward pass with gradients under a budget.

    """
    report = require_reversible(model).budget_report
    if report is None:
        raise ValueError(
            "No forward pass with gradients has run under a Budget; call revformers.set_activations(model, "
            'revformers.Budget("20GiB")), and then the model.'
        )
    return report


def smallest_budget(model: nn.Module, batch_size: int, sequence_length: int, recompute: Recompute = "rebuild") -> int:
    """Return the bytes that a forward pass keeps which stores nothing; a `Budget` must have at least as many.

    Args:
        model: a reversible model.
        batch_size: sequences in a batch.
        sequence_length: tokens in a sequence, padding included.
        recompute: how the budget recomputes.

    Raises:
        ValueError: for an ordinary model, or dynamics without an inverse.

    """
    reversible, inner = require_reversible(model), unwrap(model)
    elements = batch_size * sequence_length * inner.config.get_text_config(decoder=True).hidden_size
    item_size = inner.get_input_embeddings().weight.element_size()
    steps = reversible.dynamics.steps(reversible.number_of_layers)
    return smallest_budget_of_steps(elements, item_size, steps, may_rebuild=recompute == "rebuild")
