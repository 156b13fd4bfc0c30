"""Train and fine-tune language models with reversible dynamics: exact gradients, activation memory free of depth."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

__version__ = version("revformers")

from revformers import dynamics, errors, integrations
from revformers.activations import ActivationPolicy, Budget, Checkpoint, Offload, Rebuild, Store
from revformers.activations.budget.report import BudgetReport
from revformers.checkpoints.adapter import load_adapter
from revformers.checkpoints.loading import from_pretrained, register
from revformers.conversion.convert import convert
from revformers.conversion.report import Conversion
from revformers.dynamics import (
    BlendedMidpoint,
    Dynamics,
    Hamiltonian,
    Leapfrog,
    Midpoint,
    Residual,
    TwoEvaluationMidpoint,
)
from revformers.engine.vector_math import resolve_vector_math
from revformers.errors import NotReversibleError, RebuildMismatchError, StateRangeError
from revformers.head.loss import HeadLoss, set_head_loss
from revformers.models.budget import budget_report, smallest_budget
from revformers.models.compile import compile_layers
from revformers.models.describe import Description, describe
from revformers.models.families import register_layout
from revformers.models.families.layout import BlockLayout, Branch
from revformers.models.ordinary import ordinary
from revformers.models.reversible import make_residual, make_reversible, set_activations
from revformers.models.tiles import set_mlp_tiles
from revformers.models.update_predictor import PredictorForm
from revformers.models.verify import GradientReport, verify_gradients

if TYPE_CHECKING:
    from revformers.training.callback import ReversibleCallback

resolve_vector_math()
register()
integrations.register()

__all__ = [
    "ActivationPolicy",
    "BlendedMidpoint",
    "BlockLayout",
    "Branch",
    "Budget",
    "BudgetReport",
    "Checkpoint",
    "Conversion",
    "Description",
    "Dynamics",
    "GradientReport",
    "Hamiltonian",
    "HeadLoss",
    "Leapfrog",
    "Midpoint",
    "NotReversibleError",
    "Offload",
    "PredictorForm",
    "Rebuild",
    "RebuildMismatchError",
    "Residual",
    "ReversibleCallback",
    "StateRangeError",
    "Store",
    "TwoEvaluationMidpoint",
    "budget_report",
    "compile_layers",
    "convert",
    "describe",
    "dynamics",
    "errors",
    "from_pretrained",
    "integrations",
    "load_adapter",
    "make_residual",
    "make_reversible",
    "ordinary",
    "register_layout",
    "set_activations",
    "set_head_loss",
    "set_mlp_tiles",
    "smallest_budget",
    "verify_gradients",
]


def __getattr__(name: str) -> Any:
    """Import the callback where it is used: transformers' trainer callbacks take half a second."""
    if name == "ReversibleCallback":
        from revformers.training.callback import ReversibleCallback

        return ReversibleCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
