"""Wrappers around functions of other libraries, so that these handle reversible models correctly.

The wrappers are installed when the library is imported, before or after revformers, and pass ordinary models on to the
library. Our functions are imported at their first call, so that they add nothing to the time of any import. The
documentation lists them all (`docs/reference/integrations.md`).
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
        "Trainer.prediction_step": "training.trainer:prediction_step",
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
"""The wrapped functions of each module of another library, with our wrapper as module:function in revformers."""

EXTENDED = {
    "transformers.models.auto.configuration_auto": "checkpoints.auto_config:extend",
    "trl.trainer.utils": "training.trl:extend_references",
    "trl.trainer.base_trainer": "training.trl:extend_cards",
}
"""Our function that extends a module of another library, for modules that need more than wrapped functions."""


def register() -> None:
    """Extend the libraries that are already imported, and each of the others when it is imported."""
    # By name: revformers may be imported a second time, after its modules were removed from `sys.modules`.
    if any(type(finder).__qualname__ == _Finder.__qualname__ for finder in sys.meta_path):
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        for name in WRAPPED | EXTENDED:
            module = sys.modules.get(name)
            if module is not None:  # None is there for a module that must not be imported
                _extend_when_imported(module)
    except BaseException:
        sys.meta_path.remove(finder)  # the next import of revformers extends what is left
        raise


def wrap(module: ModuleType, path: str, target: str) -> None:
    """Wrap a function of another library in one of ours, unless it is wrapped already.

    Args:
        module: a module of the library.
        path: the name of the function in the module, preceded by its class if it is a method.
        target: our function, as in `WRAPPED`. It receives the library's function, then the arguments of the call.

    """
    *classes, name = path.split(".")
    try:
        owner = functools.reduce(getattr, classes, module)
        found = inspect.getattr_static(owner, name)
    except AttributeError:
        raise ImportError(
            f"revformers extends {path} of {module.__name__}, which the installed version does not have; install a "
            f"version that revformers names in its requirements, or a newer revformers."
        ) from None
    kind = type(found) if isinstance(found, classmethod | staticmethod) else None
    original = found.__func__ if kind else found
    if getattr(getattr(original, "__code__", None), "co_filename", None) == __file__:
        return  # by an import of revformers that failed later, or as another library's import hook loads the module too

    @functools.wraps(original)
    def wrapper(*arguments: Any, **keywords: Any) -> Any:
        return _own(target)(original, *arguments, **keywords)

    setattr(owner, name, kind(wrapper) if kind else wrapper)


def _own(target: str) -> Callable[..., Any]:
    return pkgutil.resolve_name(f"revformers.{target}")


def _extend(module: ModuleType) -> None:
    for path, target in WRAPPED.get(module.__name__, {}).items():
        wrap(module, path, target)
    if module.__name__ in EXTENDED:
        _own(EXTENDED[module.__name__])(module)


def _extend_when_imported(module: ModuleType) -> None:
    """Extend a module of `sys.modules`: now, or when its import ends."""
    spec: Any = module.__spec__
    # Python says nowhere else that a module is still being imported.
    if getattr(spec, "_initializing", False):
        spec.__class__ = _UnfinishedSpec
    # Asked again, because another thread may have ended the import in between.
    if not getattr(spec, "_initializing", False):
        _extend(module)


class _UnfinishedSpec(ModuleSpec):
    """The spec of a module that is being imported. It extends the module when Python marks the import as ended."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_initializing" and not value and self.name in sys.modules:  # where it is not if the import failed
            try:
                _extend(sys.modules[self.name])
            except BaseException:
                del sys.modules[self.name]
                raise
        super().__setattr__(name, value)


class _Finder(MetaPathFinder):
    """Finds the modules to extend by the other finders, and lets `_Loader` load them."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in WRAPPED and fullname not in EXTENDED:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Loads a module with its own loader, and extends it."""

    def __init__(self, own: Loader) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        """Pass questions about the source on to the module's own loader."""
        if name == "_own":  # a copy is asked for other attributes before it has this one
            raise AttributeError(name)
        return getattr(self._own, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # Readers of a module's source or data use its loader, so the module gets its own loader back.
        module.__loader__ = self._own
        if module.__spec__ is not None:
            module.__spec__.loader = self._own
        self._own.exec_module(module)
        _extend(module)
