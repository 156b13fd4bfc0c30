"""Functions of ours are put around those of other libraries as these are imported."""

import importlib
import inspect
import pkgutil
import sys

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
    for name in ("some_library", "revformers_part"):
        sys.modules.pop(name, None)


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


def test_libraries_that_are_imported_already_are_extended_once(library):
    some = importlib.import_module("some_library")
    library.setattr(sys, "meta_path", [one for one in sys.meta_path if type(one) is not integrations._Finder])
    library.setattr(integrations, "EXTENDED", {})
    library.setattr(integrations, "WRAPPED", {"some_library": {"Model.save": "around"}})
    integrations.register()
    integrations.register()
    model = some.Model()
    assert model.save("there") == ("ours", (model, "there", True))
