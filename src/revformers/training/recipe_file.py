"""The recipe reader: turns a YAML file and command-line options into nested dataclasses, or raises one clear error.

One parser of our own serves every kind of recipe. In a trial jsonargparse and pydantic read the same dataclasses, but
either would still need most of the code here: lists and switches without brackets (``--sample.prompts a b``,
``--data.streaming``), dashes in names, the nearest known name, and messages of one sentence that names the file. tyro,
which prints the help, neither reads YAML nor accepts new keys of a dict.
"""

import dataclasses
import difflib
import re
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from revformers.errors import UserError, reason_of

Section = TypeVar("Section")

EXPECTED = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
TEXTS = {"texts": True}
"""Metadata of a dict field whose values on the command line are texts as they are, not YAML, such as templates."""

LISTS = {str: "a list of texts", int: "a list of whole numbers", float: "a list of numbers such as 1e-3 or 2.0"}


class RecipeLoader(yaml.SafeLoader):
    """YAML 1.1 with the floats of YAML 1.2: PyYAML alone reads ``1e-3`` as a string.

    What PyYAML reads otherwise than its author may have meant is refused: a key that is given twice, of which it keeps
    the last, and numbers of base 8 and 60 (0100 and 1:30). So is what no field can take: a section inside itself, and
    texts that are not Unicode or hold a null character.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._open: set[str] = set()

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse an alias of a node that contains it."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) and event.anchor in self._open:
            raise yaml.YAMLError(f"*{event.anchor} in {_line(event)} stands inside &{event.anchor} itself")
        anchor = getattr(event, "anchor", None)
        if anchor is None or isinstance(event, yaml.AliasEvent):
            return super().compose_node(parent, index)
        self._open.add(anchor)
        try:
            return super().compose_node(parent, index)
        finally:
            self._open.discard(anchor)

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Refuse a key that is given twice."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, str] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in lines:
                    raise yaml.YAMLError(
                        f"it gives {key.value!r} twice in one section, in {lines[key.value]} and {_line(key)}"
                    )
                lines[key.value] = _line(key)
        return node

    def construct_scalar(self, node: Any) -> Any:
        """Refuse texts that are not Unicode or hold a null character."""
        value = super().construct_scalar(node)
        if "\0" in value or any("\ud800" <= sign <= "\udfff" for sign in value):
            raise yaml.YAMLError(f"the text in {_line(node)} holds a character that no text may hold")
        return value

    def construct_yaml_int(self, node: Any) -> int:
        """Refuse whole numbers of base 8 and 60."""
        if OTHER_BASE.match(node.value):
            raise yaml.YAMLError(
                f"{node.value} in {_line(node)} may be a number of base 8 or 60; write it without zeros at its "
                f"beginning and without colons, or put it into quotes if it is a text"
            )
        return super().construct_yaml_int(node)

    def construct_yaml_float(self, node: Any) -> float:
        """Refuse numbers of base 60; the others are read alike."""
        if ":" in node.value:
            raise yaml.YAMLError(
                f"{node.value} in {_line(node)} may be a number of base 60; put it into quotes if it is a text"
            )
        return super().construct_yaml_float(node)


OTHER_BASE = re.compile(r"[-+]?0[0-7_]|.*:")
"""Whole numbers that YAML 1.1 reads in base 8 or 60."""


def _line(place: Any) -> str:
    return f"line {place.start_mark.line + 1}"


RecipeLoader.add_constructor("tag:yaml.org,2002:int", RecipeLoader.construct_yaml_int)
RecipeLoader.add_constructor("tag:yaml.org,2002:float", RecipeLoader.construct_yaml_float)
RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class Words(tuple[str, ...]):
    """The words after an option on the command line, which are parsed according to the type of their field."""

    def __str__(self) -> str:
        return " ".join(self)


def read_recipe(
    default: Section, path: str | Path, overrides: Mapping[str, Any] | Sequence[str] | None = None
) -> Section:
    """Return the recipe in the YAML file at `path`, changed by `overrides`.

    Args:
        default: a recipe of the same class, for the fields that the file leaves out. If the class has a run directory,
            its default is named after the file.
        path: the file.
        overrides: values by dotted name, ``{"training.max_steps": 5}``, or command-line words,
            ``["--training.max_steps", "5"]``.

    Raises:
        FileNotFoundError: for a missing file.
        UserError: for invalid YAML, an unknown field, or a value that does not fit its field.

    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no recipe {str(path)!r}.")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {reason_of(error)}.") from error
    if not isinstance(values, Mapping):
        raise UserError(f"{path} does not hold the sections of a recipe, such as model, data and training.")
    run_directory = {"output": str(Path("runs") / path.stem)} if hasattr(default, "output") else {}
    recipe = filled(default, {**run_directory, **values}, origin=str(path))
    options = overrides if isinstance(overrides, Mapping) else split_options(overrides or ())
    return filled(recipe, _nested(options), origin="options") if options else recipe


def parse_yaml(text: str) -> Any:
    """Return the value of the YAML in `text`; raise yaml.YAMLError if it is not valid."""
    try:
        return yaml.load(text, Loader=RecipeLoader)
    except (ValueError, RecursionError) as error:
        # A date in month 13, a whole number of 5,000 digits, or thousands of nested lists.
        raise yaml.YAMLError(f"it cannot be read ({str(error)[:100]})") from error


def split_options(arguments: Sequence[str]) -> dict[str, Words]:
    """Return the words after each ``--dotted.name`` of a command line, by that name.

    ``--name=value`` works too, and so do dashes instead of underscores in a name.

    Raises:
        UserError: for a word before the first option.

    """
    options: dict[str, Words] = {}
    name = None
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            name = name.replace("-", "_")
            options[name] = Words([value] if equals else [])
        elif name is None:
            raise UserError(f"{argument!r} follows no option; options are written --section.field value.")
        else:
            options[name] = Words([*options[name], argument])
    return options


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about the unknown `name`: the closest of the `known` names, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; it takes {', '.join(known)}."


def _nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{"a.b": 1}`` as ``{"a": {"b": 1}}``."""
    result: dict[str, Any] = {}
    for dotted, value in options.items():
        *sections, name = dotted.split(".")
        inner = result
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                raise UserError(f"options: {section!r} in {dotted!r} has a value of its own as well; give only one.")
        inner[name] = value
    return result


def filled(section: Section, values: Mapping[str, Any], origin: str, path: str = "") -> Section:
    """Return a copy of the dataclass instance `section` with new values of its fields.

    Args:
        section: the instance to start from.
        values: new values by field name, from YAML or as `Words`. A mapping fills a nested dataclass, and replaces only
            its own keys in a dict.
        origin: the source of the values, for messages.
        path: dotted name of `section`, empty at the top.

    Raises:
        UserError: for an unknown name, or a value of the wrong type.

    """
    hints = get_type_hints(type(section))
    fields = {field.name: field for field in dataclasses.fields(section)}  # type: ignore[arg-type]
    known = list(fields)
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            where = f"section {path!r}" if path else "a recipe"
            sections = {other: inner for other in known if dataclasses.is_dataclass(inner := getattr(section, other))}
            inside = [f"{other}.{name}" for other, inner in sections.items() if hasattr(inner, str(name))]
            hint = f"; did you mean {inside[0]!r}?" if inside else suggestion(name, known)
            raise UserError(f"{origin}: {where} has no {name!r}{hint}")
        dotted = f"{path}.{name}" if path else name
        current = getattr(section, name)
        if isinstance(current, dict) or dataclasses.is_dataclass(current):
            given = {} if value is None else _read(value)  # an empty section in YAML is None
            if not isinstance(given, Mapping):
                raise UserError(f"{origin}: {dotted!r} is a section with fields of its own, not {str(value)!r}.")
            if isinstance(current, dict):
                changes[name] = _merged(current, given, "texts" in fields[name].metadata)
            else:
                changes[name] = filled(current, given, origin, dotted)
        else:
            try:
                changes[name] = _converted(value, hints[name])
            except _Unfit as expected:
                raise UserError(f"{origin}: {dotted!r} takes {expected}, not {str(value)!r}.") from None
    return dataclasses.replace(section, **changes)  # type: ignore[type-var]


def _merged(current: Mapping[str, Any], values: Mapping[str, Any], texts: bool) -> dict[str, Any]:
    """Return `current` with new values; with `texts`, words of the command line are values as they are, not YAML."""
    result = dict(current)
    for key, value in values.items():
        inner = result.get(key)
        nested = isinstance(value, Mapping)
        if nested:
            result[key] = _merged(inner if isinstance(inner, Mapping) else {}, value, texts)
        else:
            result[key] = str(value) if texts and isinstance(value, Words) else _read(value)
    return result


def _read(value: Any) -> Any:
    """Return `Words` parsed as YAML, and any other value unchanged."""
    if not isinstance(value, Words):
        return value
    try:
        parts = [parse_yaml(word) for word in value]
    except yaml.YAMLError as error:
        reason = f": {error}" if not isinstance(error, yaml.MarkedYAMLError) else ""
        raise UserError(
            f"{str(value)!r} on the command line is not YAML{reason}; put it into quotes of its own."
        ) from error
    return True if not parts else parts[0] if len(parts) == 1 else parts


class _Unfit(Exception):
    """Raised for a value that does not fit its field; the message names what the field takes."""


def _converted(value: Any, annotation: Any) -> Any:
    """Return `value` in the annotated type of its field, or raise `_Unfit`."""
    if isinstance(annotation, types.UnionType):
        annotation, _ = get_args(annotation)  # fields are X or X | None
        words = isinstance(value, Words) or (isinstance(value, str) and annotation is not str)  # YAML's word is null
        if value is None or (words and str(value).lower() in ("none", "null")):
            return None
    if get_origin(annotation) is tuple:
        element = get_args(annotation)[0]
        items = [word if element is str else parse_yaml(word) for word in value] if isinstance(value, Words) else value
        if isinstance(items, list | tuple) and all(type(item) is element for item in items):
            return tuple(items)
        raise _Unfit(LISTS[element])
    value = str(value) if annotation is str and isinstance(value, Words) else _read(value)
    if get_origin(annotation) is Literal:
        if value in get_args(annotation):
            return value
        raise _Unfit(f"one of {', '.join(map(str, get_args(annotation)))}")
    if annotation is float and type(value) in (int, float):
        if not abs(value) <= sys.float_info.max:
            raise _Unfit("a finite number")
        return float(value)
    if annotation is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is annotation:
        return value
    raise _Unfit(EXPECTED[annotation])
