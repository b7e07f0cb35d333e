"""Methods as an experiment names them: name:option=value,option=value."""

import json
from dataclasses import dataclass
from typing import Any

from neulig_ray.errors import InputError
from neulig_ray.merging import METHODS, Method


@dataclass(frozen=True)
class MethodSpec:
    """A method with the options that are not its defaults, as sorted pairs."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "MethodSpec":
        """From `ties:density=0.1,aggregate=sum`; raises InputError for an unknown method or option."""
        name, _, rest = text.partition(":")
        method = METHODS[name]
        given = {}
        for part in filter(None, rest.split(",")):
            option, equals, value = part.partition("=")
            if not equals:
                raise InputError(f"method {text!r}: {part!r} is not option=value")
            given[option] = _value(value)
        method.resolve(given)
        changed = {k: v for k, v in given.items() if v != method.options[k]}
        return cls(name, tuple(sorted(changed.items())))

    @property
    def method(self) -> Method:
        return METHODS[self.name]

    @property
    def identity(self) -> dict[str, Any]:
        """What a fingerprint needs to know of the method."""
        return {
            "method": self.name,
            "module": METHODS.module(self.name),
            "version": self.method.version,
            "options": dict(self.options),
        }


def _value(text: str) -> Any:
    """A number, true, false or null as JSON has them; any other text as it stands."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
