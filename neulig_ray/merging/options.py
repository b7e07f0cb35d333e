"""Options of methods: the signature is the schema, its annotations say what is allowed."""

import contextlib
import inspect
import json
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from neulig_ray.errors import InputError, unknown

T = TypeVar("T")
TENTHS = tuple(i / 10 for i in range(1, 11))  # 0.1 to 1, the grid of many papers
# Parameters that the engine fills in; every other keyword-only parameter is an option.
PROVIDED = frozenset({"base", "survey", "statistics", "name", "start"})


@dataclass(frozen=True)
class About:
    """What an option means, and the interval that its value must lie in (`above` excludes its end).

    `per_expert`: where the value is a list, it has one number for each expert. `instead`: a sentence, what to
    use for numbers outside of the interval.
    """

    text: str
    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    per_expert: bool = False
    instead: str = ""

    @property
    def bounded(self) -> bool:
        return any(end is not None for end in (self.above, self.at_least, self.at_most))

    def interval(self) -> str:
        low = "(-inf" if self.above is None and self.at_least is None else ""
        low = low or (f"({self.above:g}" if self.above is not None else f"[{self.at_least:g}")
        return f"{low}, " + ("inf)" if self.at_most is None else f"{self.at_most:g}]")


@dataclass(frozen=True)
class Tuned:
    """A default that experiments replace by the best of `grid` on val; alone, `value` stands."""

    value: Any
    grid: tuple[Any, ...]


def tuned(value: T, grid: Sequence[T]) -> T:
    """A default for signatures: `scaling: Scaling = tuned(0.3, (0.1, 0.2, 0.3))`."""
    return cast("T", Tuned(value, tuple(grid)))


Density = Annotated[float, About("fraction of the task vector's entries that is kept", above=0, at_most=1)]
Scaling = Annotated[float, About("scale of the task vectors")]
Seed = Annotated[int, About("of the random choices", at_least=0)]


@dataclass(frozen=True)
class Option:
    """One option of a method, as read from its signature."""

    name: str
    type: Any
    default: Any
    about: About
    grid: tuple[Any, ...] = ()

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def choices(self) -> tuple[Any, ...]:
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def several(self) -> bool:
        """Whether its value is a list."""
        return any(get_origin(part) is tuple for part in _parts(self.type))

    def read(self, method: str, words: Sequence[str]) -> Any:
        """The value that words of a command line spell; raises InputError as `check` does."""
        values = [word if word in self.choices else _spelled(word) for word in words]
        value = values if self.several and len(values) > 1 else values[0]
        if _fit(self.type, value) is _MISFIT and not self.choices:
            value = list(words) if len(words) > 1 else words[0]
        return self.check(method, value)

    def check(self, method: str, value: Any) -> Any:
        """The value as the method takes it; raises InputError for a wrong type, choice or interval."""
        where = f"{method}: option {self.name!r} is {value!r}"
        if self.choices:
            if value not in self.choices:
                raise unknown(
                    f"value of {method}'s option {self.name!r}:", str(value), map(str, self.choices)
                )
            return value
        fitted = _fit(self.type, value)
        if fitted is _MISFIT:
            raise InputError(f"{where}, but it must be {type_name(self.type)}")
        numbers = fitted if isinstance(fitted, tuple) else (fitted,)
        for number in numbers:
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                if not math.isfinite(number):
                    raise InputError(f"{where}, but it must be finite: it is the {self.about.text}")
                a = self.about
                if not (
                    (a.above is None or number > a.above)
                    and (a.at_least is None or number >= a.at_least)
                    and (a.at_most is None or number <= a.at_most)
                ):
                    instead = f". {a.instead}" if a.instead else ""
                    raise InputError(
                        f"{where}, but it must lie in {a.interval()}: it is the {a.text}{instead}"
                    )
        return fitted


_MISFIT = object()


def _spelled(word: str) -> Any:
    """A number (.5 too), true, false or null as JSON has them (or none); any other text as it stands."""
    with contextlib.suppress(json.JSONDecodeError):
        return json.loads("null" if word == "none" else word)
    try:
        return float(word)
    except ValueError:
        return word


def _fit(kind: Any, value: Any) -> Any:
    if kind is Any:
        return value
    if get_origin(kind) in (Union, types.UnionType):
        for part in get_args(kind):
            if (fitted := _fit(part, value)) is not _MISFIT:
                return fitted
        return _MISFIT
    if kind is type(None) or kind is None:
        return None if value is None else _MISFIT
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        if isinstance(value, str) or not isinstance(value, Sequence):
            value = (value,)
        fitted = tuple(_fit(inner, v) for v in value)
        return _MISFIT if any(v is _MISFIT for v in fitted) else fitted
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, bool) and kind is not bool:
        return _MISFIT
    return value if isinstance(kind, type) and isinstance(value, kind) else _MISFIT


def _parts(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def base_types(kind: Any) -> list[Any]:
    """The types of single values that a type is made of: float of `tuple[float, ...] | None`."""
    return [get_args(part)[0] if get_origin(part) is tuple else part for part in _parts(kind)]


def type_name(kind: Any) -> str:
    """How people are told a type: 'a number', 'one of a, b'."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(type_name(part) for part in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list of {type_name(get_args(kind)[0]).removeprefix('a ')}s"
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    return names.get(kind, "none" if kind is type(None) else str(kind))


def read_options(*functions: Callable[..., Any] | None) -> dict[str, Option]:
    """The options of a method: the keyword-only parameters of its functions, the first one's first."""
    found: dict[str, Option] = {}
    for function in functions:
        if function is None:
            continue
        hints = get_type_hints(function, include_extras=True)
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is not parameter.KEYWORD_ONLY or parameter.name in PROVIDED:
                continue
            kind, about = hints.get(parameter.name, Any), About(parameter.name.replace("_", " "))
            if get_origin(kind) is Annotated:
                kind, *notes = get_args(kind)
                about = next((note for note in notes if isinstance(note, About)), about)
            default, grid = parameter.default, ()
            if isinstance(default, Tuned):
                default, grid = default.value, default.grid
            if parameter.name not in found or found[parameter.name].required:
                found[parameter.name] = Option(parameter.name, kind, default, about, grid)
    return found


def accepted(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` that the function has parameters for; all, if it takes any."""
    names = _parameters(function)
    return {name: value for name, value in values.items() if names is None or name in names}


@lru_cache(maxsize=256)  # a merge asks for every piece: a fifth of an average's user time
def _parameters(function: Callable[..., Any]) -> frozenset[str] | None:
    """The names that can be given by keyword; None where any can."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD))
