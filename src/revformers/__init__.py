"""Training of language models with reversible dynamics: exact gradients, activation memory independent of depth."""

import importlib
import threading
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from revformers import integrations

if TYPE_CHECKING:
    from revformers import activations as activations
    from revformers import analysis as analysis
    from revformers import dynamics as dynamics
    from revformers import errors as errors
    from revformers.activations import ActivationPolicy as ActivationPolicy
    from revformers.activations import Budget as Budget
    from revformers.activations import Checkpoint as Checkpoint
    from revformers.activations import Offload as Offload
    from revformers.activations import Rebuild as Rebuild
    from revformers.activations import Store as Store
    from revformers.activations.budget.report import BudgetReport as BudgetReport
    from revformers.checkpoints.adapter import load_adapter as load_adapter
    from revformers.checkpoints.load import from_pretrained as from_pretrained
    from revformers.checkpoints.model_class import reversible_class as reversible_class
    from revformers.conversion.convert import convert as convert
    from revformers.conversion.report import Conversion as Conversion
    from revformers.dynamics import BlendedMidpoint as BlendedMidpoint
    from revformers.dynamics import Dynamics as Dynamics
    from revformers.dynamics import Hamiltonian as Hamiltonian
    from revformers.dynamics import Leapfrog as Leapfrog
    from revformers.dynamics import Midpoint as Midpoint
    from revformers.dynamics import Residual as Residual
    from revformers.dynamics import TwoEvaluationMidpoint as TwoEvaluationMidpoint
    from revformers.engine.state_format import StateFormat as StateFormat
    from revformers.errors import NotReversibleError as NotReversibleError
    from revformers.errors import RebuildMismatchError as RebuildMismatchError
    from revformers.errors import StateRangeError as StateRangeError
    from revformers.head.loss import HeadLoss as HeadLoss
    from revformers.head.loss import set_head_loss as set_head_loss
    from revformers.models.attach import set_activations as set_activations
    from revformers.models.budget import budget_report as budget_report
    from revformers.models.budget import smallest_budget as smallest_budget
    from revformers.models.compile import compile_layers as compile_layers
    from revformers.models.describe import Description as Description
    from revformers.models.describe import describe as describe
    from revformers.models.families import register_layout as register_layout
    from revformers.models.families.layout import BlockLayout as BlockLayout
    from revformers.models.families.layout import Branch as Branch
    from revformers.models.gradient_report import GradientReport as GradientReport
    from revformers.models.ordinary import ordinary as ordinary
    from revformers.models.repeatability import nondeterministic_modules as nondeterministic_modules
    from revformers.models.states import choose_states as choose_states
    from revformers.models.states import set_states as set_states
    from revformers.models.tiles import set_mlp_tiles as set_mlp_tiles
    from revformers.models.update_predictor import PredictorForm as PredictorForm
    from revformers.models.verify import verify_gradients as verify_gradients
    from revformers.reversible import make_residual as make_residual
    from revformers.reversible import make_reversible as make_reversible
    from revformers.training.callback import ReversibleCallback as ReversibleCallback
    from revformers.training.fit_to_memory import fit_to_memory as fit_to_memory
    from revformers.training.fitted import Fitted as Fitted

__version__ = version("revformers")

_NAMES = {
    "activations": ("ActivationPolicy", "Budget", "Checkpoint", "Offload", "Rebuild", "Store"),
    "activations.budget.report": ("BudgetReport",),
    "checkpoints.adapter": ("load_adapter",),
    "checkpoints.load": ("from_pretrained",),
    "checkpoints.model_class": ("reversible_class",),
    "conversion.convert": ("convert",),
    "conversion.report": ("Conversion",),
    "dynamics": (
        "BlendedMidpoint",
        "Dynamics",
        "Hamiltonian",
        "Leapfrog",
        "Midpoint",
        "Residual",
        "TwoEvaluationMidpoint",
    ),
    "engine.state_format": ("StateFormat",),
    "errors": ("NotReversibleError", "RebuildMismatchError", "StateRangeError"),
    "head.loss": ("HeadLoss", "set_head_loss"),
    "models.attach": ("set_activations",),
    "models.budget": ("budget_report", "smallest_budget"),
    "models.compile": ("compile_layers",),
    "models.describe": ("Description", "describe"),
    "models.families": ("register_layout",),
    "models.families.layout": ("BlockLayout", "Branch"),
    "models.ordinary": ("ordinary",),
    "models.repeatability": ("nondeterministic_modules",),
    "models.states": ("choose_states", "set_states"),
    "models.tiles": ("set_mlp_tiles",),
    "models.update_predictor": ("PredictorForm",),
    "models.gradient_report": ("GradientReport",),
    "models.verify": ("verify_gradients",),
    "reversible": ("make_residual", "make_reversible"),
    "training.callback": ("ReversibleCallback",),
    "training.fit_to_memory": ("fit_to_memory",),
    "training.fitted": ("Fitted",),
}
"""The public names by module. Each is imported when it is first used, so that `revformers --help` and a script that
only loads saved models start fast. Type checkers read the imports above."""

_MODULES = {name: f"revformers.{module}" for module, names in _NAMES.items() for name in names}

__all__ = sorted([*_MODULES, "activations", "analysis", "dynamics", "errors"])

_IMPORTING = threading.RLock()
"""Held while a public name is imported, because two threads could otherwise each wait for a module that the other is
importing. No module of the library imports a public name from here at its top: it would wait for such a thread."""

integrations.register()


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _IMPORTING:
        found = importlib.import_module(_MODULES.get(name, f"revformers.{name}"))
    if name in _MODULES:
        found = getattr(found, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return all names of the module, including public names that are not imported yet."""
    return sorted({*globals(), *__all__})
