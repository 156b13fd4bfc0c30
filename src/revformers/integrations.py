"""Changes to other libraries, by which a reversible model stays itself in them: functions of ours around theirs.

They are put there when the library is imported, before or after revformers, and leave ordinary models to the library.
Ours are imported when they are first called, so that neither revformers nor the library takes longer to import for
them. The documentation lists them all (`docs/integrations.md`).
"""

import functools
import inspect
import pkgutil
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

WRAPPED = {
    "transformers.modeling_utils": {"PreTrainedModel.save_pretrained": "checkpoints.save:refuse_mixed"},
    "transformers.integrations.peft": {"PeftAdapterMixin.load_adapter": "checkpoints.peft:load_adapter"},
    "transformers.trainer": {
        "Trainer.train": "training.trainer:train",
        "Trainer._load_from_checkpoint": "training.trainer:load_from_checkpoint",
        "Trainer._load_best_model": "training.trainer:load_best_model",
        "Trainer._push_from_checkpoint": "training.trainer:push_from_checkpoint",
        "Trainer.create_model_card": "training.trainer:create_model_card",
    },
    "peft.config": {"PeftConfigMixin.from_json_file": "checkpoints.peft:from_json_file"},
    "peft.peft_model": {
        "PeftModel.save_pretrained": "checkpoints.peft:save_pretrained",
        "PeftModel.load_adapter": "checkpoints.peft:load_adapter",
    },
    "peft.utils.hotswap": {"hotswap_adapter": "checkpoints.peft:hotswap_adapter"},
    "trl.generation.vllm_generation": {"VLLMGeneration.__init__": "training.trl:refuse_vllm"},
}
"""For each module of another library, its functions and what of ours is around each: module:function in revformers."""

EXTENDED = {
    "transformers.models.auto.configuration_auto": "checkpoints.auto_config:extend",
    "trl.trainer.utils": "training.trl:extend_references",
    "trl.trainer.base_trainer": "training.trl:extend_cards",
}
"""For each module of another library that takes more than that, the function of ours that is given it."""


def register() -> None:
    """Extend the libraries that are imported already, and the others as soon as they are."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
        for name in WRAPPED | EXTENDED:
            if name in sys.modules:
                _extend(sys.modules[name])


def wrap(module: ModuleType, path: str, target: str) -> None:
    """Put a function of ours around one of another library.

    Args:
        module: a module of the library.
        path: the function in it, with its class where it has one.
        target: ours, as in `WRAPPED`. It gets the library's function, then the arguments of the call.

    """
    *classes, name = path.split(".")
    owner = functools.reduce(getattr, classes, module)
    found = inspect.getattr_static(owner, name)
    kind = type(found) if isinstance(found, classmethod | staticmethod) else None
    ordinary = found.__func__ if kind else found

    @functools.wraps(ordinary)
    def wrapper(*arguments: Any, **keywords: Any) -> Any:
        return _own(target)(ordinary, *arguments, **keywords)

    setattr(owner, name, kind(wrapper) if kind else wrapper)


def _own(target: str) -> Callable[..., Any]:
    return pkgutil.resolve_name(f"revformers.{target}")


def _extend(module: ModuleType) -> None:
    for path, target in WRAPPED.get(module.__name__, {}).items():
        wrap(module, path, target)
    if module.__name__ in EXTENDED:
        _own(EXTENDED[module.__name__])(module)


class _Finder(MetaPathFinder):
    """Finds the modules that are extended as the other finders do, and has them loaded by `_Loader`."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in WRAPPED and fullname not in EXTENDED:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Loads a module as its own loader does, and extends it."""

    def __init__(self, own: Loader) -> None:
        self._own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # What reads a module's source or data asks its loader, which is its own one again.
        module.__loader__ = self._own
        if module.__spec__ is not None:
            module.__spec__.loader = self._own
        self._own.exec_module(module)
        _extend(module)
