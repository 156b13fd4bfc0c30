"""Registration of classes by their names, under which recipes, commands and saved models refer to them."""

from collections.abc import Mapping
from typing import Any, TypeVar

Kind = TypeVar("Kind", bound=type)


def add(kind: Kind, base: type, registry: dict[str, Any]) -> Kind:
    """Add a class to `registry` under its name, and return it.

    Raises:
        TypeError: if `kind` is no subclass of `base`, or its name is not a string.
        ValueError: if its name cannot be written before options, or belongs to another class.

    """
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise TypeError(f"register takes a subclass of {base.__name__}, not {kind!r}.")
    require_own_name(kind, registry)
    registry[kind.name] = kind  # type: ignore[attr-defined]
    return kind


def require_own_name(kind: type, registry: Mapping[str, Any]) -> None:
    """Raise an error unless the class attribute `name` of `kind` is a name that no other class in `registry` has.

    Raises:
        TypeError: if the name is missing, or is not a string.
        ValueError: if it cannot be written before options, or belongs to another class.

    """
    name = getattr(kind, "name", None)
    if not isinstance(name, str):
        raise TypeError(
            f'{kind.__name__} needs a name for recipes and saved models; set one in the class, such as name = "own".'
        )
    if not name or ":" in name:
        raise ValueError(f"The name {name!r} of {kind.__name__} is empty or has a colon, which separates options.")
    owner = registry.get(name, kind)
    if owner is not kind:
        raise ValueError(
            f"The name {name!r} belongs to {owner.__name__}; give {kind.__name__} another one, and register it."
        )
