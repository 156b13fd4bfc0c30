"""Reads dynamics from one word of a command, such as "midpoint" or "blended_midpoint:blend=1/4,step_size=0.5"."""

import re
from typing import TYPE_CHECKING, Any

from revformers.errors import UserError

if TYPE_CHECKING:
    from revformers.dynamics import Dynamics

_COMMA = re.compile(r",(?![^\[]*\])")
"""A comma that is not within a list, such as the one in blend=[1/2,1/4]."""


def parse_dynamics(text: str) -> "Dynamics":
    """Return the dynamics of a text: a name, and options after a colon, whose values are written as in a recipe.

    Raises:
        UserError: if there are no such dynamics or options, or the text has another form.

    """
    import yaml

    from revformers import dynamics
    from revformers.training.recipe_file import parse_yaml

    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for pair in filter(None, _COMMA.split(rest)):
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals:
            raise UserError(f"--dynamics {text}: after the colon it has options, such as blend=1/4, not {pair!r}.")
        if key in options:
            raise UserError(f"--dynamics {text}: {key} is given twice; give it once.")
        try:
            options[key] = parse_yaml(value)
        except yaml.YAMLError:
            raise UserError(f"--dynamics {text}: the value of {pair!r} cannot be read.") from None
    try:
        return dynamics.create(name, **options)
    except (ValueError, TypeError) as error:
        example = "" if options else " Options follow the name, as in blended_midpoint:blend=1/16."
        raise UserError(f"--dynamics {text}: {error}{example}") from error
