"""An arch's recipe with the experiment's own values over it."""

import dataclasses
from typing import Any, TypeVar

R = TypeVar("R")


def override(recipe: R, changes: Any) -> R:
    """`recipe` with every field of the same name that is not None in `changes`."""
    names = {field.name for field in dataclasses.fields(recipe)}  # type: ignore[arg-type]
    given = {n: getattr(changes, n) for n in names if getattr(changes, n, None) is not None}
    return dataclasses.replace(recipe, **given)  # type: ignore[type-var]
