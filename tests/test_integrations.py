"""Functions of ours are put around those of other libraries as these are imported."""

import copy
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest

from revformers import integrations

LIBRARY = """
import functools

class Model:
    def save(self, path, *, safe=True):
        "Save."
        return self, path, safe

    @classmethod
    def read(cls, path):
        return cls, path
"""


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A library that is not imported yet, with functions of ours for it."""
    (tmp_path / "some_library.py").write_text(LIBRARY, encoding="utf-8")
    (tmp_path / "revformers_part.py").write_text(
        "def around(ordinary, *arguments, **keywords):\n    return 'ours', ordinary(*arguments, **keywords)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(integrations, "_own", lambda target: pkgutil.resolve_name(f"revformers_part:{target}"))
    yield monkeypatch
    for name in ("some_library", "other_library", "revformers_part"):
        sys.modules.pop(name, None)


@pytest.fixture
def before_revformers(library):
    """The same, as if revformers, which extends `Model.save` of the library, was not imported yet."""
    library.setattr(sys, "meta_path", [one for one in sys.meta_path if type(one) is not integrations._Finder])
    library.setattr(integrations, "EXTENDED", {})
    library.setattr(integrations, "WRAPPED", {"some_library": {"Model.save": "around"}})
    return library


def times_wrapped(function):
    """How many functions of ours are around a function."""
    count = 0
    while hasattr(function, "__wrapped__"):
        count += function.__code__.co_filename == integrations.__file__
        function = function.__wrapped__
    return count


class Hook:
    """Hooks into the import of a module as wrapt does: finds it by all finders once more."""

    def __init__(self, name):
        self.name, self.finding = name, False

    def find_spec(self, name, path=None, target=None):
        if name != self.name or self.finding:
            return None
        self.finding = True
        try:
            return importlib.util.find_spec(name)
        finally:
            self.finding = False


def test_a_function_is_put_around_another_when_its_library_is_imported(library):
    library.setitem(integrations.WRAPPED, "some_library", {"Model.save": "around", "Model.read": "around"})
    some = importlib.import_module("some_library")
    assert "revformers_part" not in sys.modules  # until it is called
    model = some.Model()
    assert model.save("there", safe=False) == ("ours", (model, "there", False))
    assert some.Model.read("there") == ("ours", (some.Model, "there"))
    assert list(inspect.signature(model.save).parameters) == ["path", "safe"]
    assert model.save.__doc__ == "Save."
    assert inspect.getsource(some) == LIBRARY


def test_a_library_that_cannot_be_extended_is_not_imported(library):
    def refuse(module):
        raise ImportError("another release")

    library.setattr(integrations, "_own", lambda target: refuse)
    library.setitem(integrations.EXTENDED, "some_library", "refuse")
    with pytest.raises(ImportError, match="another release"):
        importlib.import_module("some_library")
    assert "some_library" not in sys.modules


def test_libraries_that_are_imported_already_are_extended_once(before_revformers):
    some = importlib.import_module("some_library")
    integrations.register()
    integrations.register()
    model = some.Model()
    assert model.save("there") == ("ours", (model, "there", True))


def test_an_import_after_a_failed_one_extends_what_is_left(before_revformers):
    some = importlib.import_module("some_library")
    other = ModuleType("other_library")
    before_revformers.setitem(sys.modules, "other_library", other)
    functions = {name: {"Model.save": "around"} for name in ("some_library", "other_library")}
    before_revformers.setattr(integrations, "WRAPPED", functions)
    for _ in range(2):  # as often as revformers is imported
        with pytest.raises(ImportError, match=r"extends Model\.save of other_library, which the installed version"):
            integrations.register()
    other.Model = type("Model", (), {"save": lambda self, path: path})
    integrations.register()
    assert other.Model().save("there") == ("ours", "there")
    assert times_wrapped(some.Model.save) == times_wrapped(other.Model.save) == 1


def test_a_module_that_cannot_be_imported_is_left_alone(before_revformers):
    before_revformers.setitem(sys.modules, "some_library", None)
    integrations.register()
    assert sys.modules["some_library"] is None


REGISTER = "from revformers import integrations; integrations.register()\n"
"""What a library does that imports revformers while it is itself being imported."""


def test_a_library_that_imports_revformers_is_extended_when_its_import_ends(before_revformers, tmp_path):
    (tmp_path / "some_library.py").write_text(REGISTER + LIBRARY, encoding="utf-8")
    some = importlib.import_module("some_library")
    model = some.Model()
    assert model.save("there") == ("ours", (model, "there", True))


def test_a_library_that_another_thread_imports_is_extended_when_its_import_ends(before_revformers, tmp_path):
    barrier = threading.Barrier(2, timeout=60)
    before_revformers.setitem(sys.modules, "other_library", SimpleNamespace(wait=barrier.wait))
    waits = "from other_library import wait; wait(); wait()\n"
    (tmp_path / "some_library.py").write_text(waits + LIBRARY, encoding="utf-8")
    thread = threading.Thread(target=importlib.import_module, args=["some_library"])
    thread.start()
    barrier.wait()
    try:
        integrations.register()
        assert not hasattr(sys.modules["some_library"], "Model")
    finally:
        barrier.wait()
        thread.join()
    assert times_wrapped(sys.modules["some_library"].Model.save) == 1


def test_an_import_that_fails_after_it_imported_revformers_fails_with_its_own_error(before_revformers, tmp_path):
    (tmp_path / "some_library.py").write_text(f"{REGISTER}1 / 0\n", encoding="utf-8")
    with pytest.raises(ZeroDivisionError):
        importlib.import_module("some_library")
    assert "some_library" not in sys.modules


def test_a_library_that_imports_revformers_and_cannot_be_extended_is_not_imported(before_revformers, tmp_path):
    (tmp_path / "some_library.py").write_text(f"{REGISTER}imported = True\n", encoding="utf-8")
    with pytest.raises(ImportError, match=r"extends Model\.save of some_library, which the installed version"):
        importlib.import_module("some_library")
    assert "some_library" not in sys.modules


def test_a_function_is_wrapped_once_where_another_library_hooks_into_the_same_import(before_revformers):
    sys.meta_path.insert(0, Hook("some_library"))
    integrations.register()
    assert times_wrapped(importlib.import_module("some_library").Model.save) == 1


def test_a_copy_of_a_loader_loads_and_extends(before_revformers):
    integrations.register()
    spec = importlib.util.find_spec("some_library")
    assert type(spec.loader) is integrations._Loader
    spec.loader = copy.copy(spec.loader)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert times_wrapped(module.Model.save) == 1
