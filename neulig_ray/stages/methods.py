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
        """From `ties:density=0.1,aggregate=sum`; raises InputError for an unknown method, option or value.

        A list is written with spaces: `weighted-average:weights=0.5 0.3 0.2`.
        """
        name, _, rest = text.partition(":")
        method = METHODS[name]
        given = {}
        for part in filter(None, rest.split(",")):
            option, equals, value = part.partition("=")
            if not equals:
                raise InputError(f"method {text!r}: {part!r} is not option=value")
            given[option] = _value(value)
        given = method.check(given)
        # A value that is given is not chosen on val, even where it is the default.
        changed = {k: v for k, v in given.items() if v != method.options[k] or k in method.grid}
        return cls(name, tuple(sorted(changed.items())))

    @property
    def method(self) -> Method:
        return METHODS[self.name]

    @property
    def grid(self) -> dict[str, tuple[Any, ...]]:
        """The options that are chosen on val, with the values to try: those of the method not given here."""
        given = {name for name, _ in self.options}
        return {name: values for name, values in self.method.grid.items() if name not in given}

    @property
    def identity(self) -> dict[str, Any]:
        """What a fingerprint needs to know of the method."""
        return {
            "method": self.name,
            "module": METHODS.module(self.name),
            "version": self.method.version,
            "options": dict(self.options),
            **({"grid": self.grid} if self.grid else {}),
        }


def _value(text: str) -> Any:
    """A number, true, false or null as JSON has them, or several with spaces; other text as it stands."""
    if " " in text.strip():
        return tuple(_value(part) for part in text.split())
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
