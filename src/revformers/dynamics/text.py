"""Dynamics as one word, such as "midpoint" or "blended_midpoint:blend=1/4,step_size=0.5"."""

import dataclasses
from typing import Any

from revformers.dynamics.base import Dynamics


def described(dynamics: Dynamics) -> str:
    """Return the name of `dynamics` and the options that are not the defaults, as the commands read them."""
    values = dynamics.to_dict()
    options = ",".join(
        f"{field.name}={_written(values[field.name])}"
        for field in dataclasses.fields(dynamics)
        if getattr(dynamics, field.name) != field.default
    )
    return f"{dynamics.name}:{options}" if options else dynamics.name


def _written(value: Any) -> str:
    return f"[{','.join(map(_written, value))}]" if isinstance(value, list) else str(value)
