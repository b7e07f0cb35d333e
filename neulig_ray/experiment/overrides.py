"""An experiment with some fields changed, by keywords as Python writes them."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from neulig_ray.errors import InputError, unknown
from neulig_ray.experiment.config import Experiment


def override(experiment: Experiment, changes: Mapping[str, Any]) -> Experiment:
    """The experiment with `changes`: field -> value; of a part such as `ligand`, a dict of its own fields.

    A list is taken for a tuple. A part given whole, `ligand=Ligand(...)`, replaces the experiment's; a dict
    changes the fields that it names. Raises InputError for a field that does not exist, with the near misses,
    and for a value of the wrong form.
    """
    return _changed(experiment, changes, "")


def _changed(part: Any, changes: Mapping[str, Any], where: str) -> Any:
    types = typing.get_type_hints(type(part))
    made = {}
    for name, value in changes.items():
        if name not in types:
            raise _unknown(name, types, where)
        made[name] = _value(getattr(part, name), value, types[name], f"{where}{name}")
    return dataclasses.replace(part, **made)


def _value(current: Any, value: Any, kind: Any, name: str) -> Any:
    if dataclasses.is_dataclass(current):
        if isinstance(value, Mapping):
            return _changed(current, value, f"{name}.")
        if not isinstance(value, type(current)):
            raise InputError(
                f"{name} is {value!r}: give a dict of its fields, {name}={{...}}, or a "
                f"{type(current).__name__}(...)"
            )
        return value
    if typing.get_origin(kind) is tuple:
        if isinstance(value, list | tuple):
            return tuple(value)
        raise InputError(f"{name} is {value!r}: give a tuple, {name}=({value!r},)")
    return value


def _unknown(name: str, types: Mapping[str, Any], where: str) -> InputError:
    remedy = ""
    if not where:
        part, dot, rest = name.partition(".")
        if dot and part in types:
            remedy = f"A part's fields go in a dict: {part}={{{rest!r}: ...}}."
        owners = [
            field
            for field, kind in types.items()
            if dataclasses.is_dataclass(kind) and name in {f.name for f in dataclasses.fields(kind)}
        ]
        if owners:
            remedy = f"It is a field of {' and of '.join(owners)}: {owners[0]}={{{name!r}: ...}}."
    return unknown(f"field of {where.rstrip('.') or 'Experiment'}", name, types, remedy)
