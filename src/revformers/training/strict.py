"""Filling dataclasses from YAML and from the command line, refusing whatever does not fit."""

import dataclasses
import difflib
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from revformers.errors import UserError

Section = TypeVar("Section")


class RecipeLoader(yaml.SafeLoader):
    """YAML 1.1 with the floats of YAML 1.2: PyYAML alone reads ``1e-3`` as a string."""


RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@dataclasses.dataclass(frozen=True)
class Words:
    """The words that followed an option on the command line; the field they are meant for decides what they mean."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.words)


def parse_yaml(text: str) -> Any:
    """Return what the YAML in `text` says.

    Raises:
        yaml.YAMLError: where `text` is not YAML.

    """
    return yaml.load(text, Loader=RecipeLoader)


def filled(section: Section, values: Mapping[str, Any], origin: str, path: str = "") -> Section:
    """Return a copy of the dataclass instance `section` with `values` in the place of its fields.

    Nested mappings go to nested dataclasses. Where a field is a dict, the new keys are added to those it has.

    Args:
        section: the instance to start from.
        values: new values by field name: what YAML holds, or `Words`.
        origin: where the values came from, for messages.
        path: dotted name of `section`, empty at the top.

    Raises:
        UserError: for a name that is no field, or a value of the wrong type.

    """
    hints = get_type_hints(type(section))
    fields = [field.name for field in dataclasses.fields(section)]  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            where = f"section {path!r}" if path else "a recipe"
            raise UserError(f"{origin}: {where} has no {name!r}{suggestion(name, fields)}")
        dotted = f"{path}.{name}" if path else name
        current = getattr(section, name)
        if dataclasses.is_dataclass(current) and not isinstance(current, type):
            changes[name] = filled(current, _mapping(value, dotted, origin), origin, dotted)
        elif get_origin(hints[name]) is dict:
            changes[name] = _merged(current, _mapping(value, dotted, origin))
        else:
            changes[name] = _converted(value, hints[name], dotted, origin)
    return dataclasses.replace(section, **changes)  # type: ignore[type-var]


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about the unknown `name`: the closest of the `known` names, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; it takes {', '.join(known)}."


def _mapping(value: Any, dotted: str, origin: str) -> Mapping[str, Any]:
    value = _read(value)
    if value is None:  # an empty section in YAML
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{origin}: {dotted!r} is a section with fields of its own, not the value {str(value)!r}.")
    return value


def _merged(current: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(current)
    for key, value in values.items():
        if isinstance(value, Mapping):
            inner = result.get(key)
            result[key] = _merged(inner if isinstance(inner, Mapping) else {}, value)
        else:
            result[key] = _read(value)
    return result


def _read(value: Any) -> Any:
    """Return the words of the command line as the YAML they spell; anything else as it is."""
    if not isinstance(value, Words):
        return value
    if not value.words:
        return True
    parts = [parse_yaml(word) for word in value.words]
    return parts[0] if len(parts) == 1 else parts


def _converted(value: Any, annotation: Any, dotted: str, origin: str) -> Any:
    """Return `value` as the annotated type of its field, or raise UserError."""
    optional = get_origin(annotation) in (types.UnionType, Union)
    if optional:
        (annotation,) = (choice for choice in get_args(annotation) if choice is not type(None))
    if get_origin(annotation) is tuple:
        return _converted_list(value, get_args(annotation)[0], dotted, origin)
    if optional and isinstance(value, Words) and str(value).lower() in ("none", "null"):
        value = None
    elif annotation is str and isinstance(value, Words):
        value = str(value)
    else:
        value = _read(value)
    if value is None and optional:
        return None
    if get_origin(annotation) is Literal:
        if value in get_args(annotation):
            return value
        expected = f"one of {', '.join(map(str, get_args(annotation)))}"
    elif annotation is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif annotation is int and isinstance(value, float) and value.is_integer():
        return int(value)
    elif isinstance(value, annotation) and (annotation is not int or not isinstance(value, bool)):
        return value
    else:
        expected = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}[annotation]
    raise UserError(f"{origin}: {dotted!r} takes {expected}, not {str(value)!r}.")


def _converted_list(value: Any, element: type, dotted: str, origin: str) -> tuple[Any, ...]:
    """Return `value` as a tuple of texts or of whole numbers, or raise UserError."""
    given = str(value)
    if isinstance(value, Words):
        value = value.words if element is str else [parse_yaml(word) for word in value.words]
    if isinstance(value, Sequence) and not isinstance(value, str) and all(type(item) is element for item in value):
        return tuple(value)
    expected = {str: "a list of texts", int: "a list of whole numbers"}[element]
    raise UserError(f"{origin}: {dotted!r} takes {expected}, not {given!r}.")
