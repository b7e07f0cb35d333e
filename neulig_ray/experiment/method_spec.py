"""Methods as an experiment names them: name:option=value,option=value."""

from dataclasses import dataclass
from typing import Any, TypeVar

from neulig_ray.errors import InputError
from neulig_ray.merging import METHODS, Method

M = TypeVar("M", bound=Method)


@dataclass(frozen=True)
class MethodSpec:
    """A method with the options that are not its defaults, as sorted pairs."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "MethodSpec":
        """From `ties:density=0.1,aggregate=sum`.

        A list is written with spaces: `weighted-average:weights=0.5 0.3 0.2`. Raises InputError for an
        unknown method, option or value, and for an option given twice, or missing where there is no default.
        """
        name, _, rest = text.partition(":")
        method = METHODS[name]
        given: dict[str, Any] = {}
        for part in filter(None, map(str.strip, rest.split(","))):
            option, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals:
                raise InputError(f"method {text!r}: {part!r} is not option=value")
            if option in given:
                raise InputError(f"method {text!r} gives {option!r} twice")
            known = method.schema.get(option)
            given[option] = known.read(name, value.split()) if known and value else value
        resolved = method.resolve(given)
        # A value that is given is not chosen on val, even where it is the default.
        changed = {k: resolved[k] for k in given if resolved[k] != method.options[k] or k in method.grid}
        return cls(name, tuple(sorted(changed.items())))

    @property
    def method(self) -> Method:
        return METHODS[self.name]

    def require(self, kind: type[M]) -> M:
        """The method, which is known to be of this kind."""
        if not isinstance(self.method, kind):
            raise TypeError(f"{self.name} is a {type(self.method).__name__}, not a {kind.__name__}")
        return self.method

    @property
    def grid(self) -> dict[str, tuple[Any, ...]]:
        """The options that are chosen on val, with the values to try: those of the method not given here."""
        given = {name for name, _ in self.options}
        return {name: values for name, values in self.method.grid.items() if name not in given}

    def options_with(self, seed: int | None) -> dict[str, Any]:
        """The options with the experiment's seed, where the method has one that is not given."""
        given = dict(self.options)
        return {"seed": seed, **given} if "seed" in self.method.options else given

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
