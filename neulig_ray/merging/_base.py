"""What a merging method declares of itself; its signature is its schema."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from neulig_ray.errors import InputError, unknown
from neulig_ray.merging._options import PROVIDED, Option, accepted, read_options
from neulig_ray.registry import Registry

Kind = Literal["reference", "ensemble", "streamed", "measured", "trained", "routed", "ligand"]
Coefficients = Callable[..., torch.Tensor | None]
Tensors = Sequence[torch.Tensor]
Refuses = Callable[[nn.Module], str | None]


def defined_everywhere(tower: nn.Module) -> None:
    """No architecture is refused."""


@dataclass(frozen=True)
class Method:
    """One way of combining collaborators.

    `coefficients(n, **options)` is the prediction-level counterpart: the n weights lambda of
    z_0 + sum lambda_i (z_i - z_0); None where the method is not linear in the task vectors with scalar
    coefficients, and then it has no ensembling accuracy. It may give None for some options alone.
    `needs` says what it takes besides the experts, in the words that people read.
    `symmetric`: with the default options, permuting the experts changes nothing but rounding; integer
    buffers, which every method takes from the first expert, apart.
    `refuses(tower)` says why the method is not defined for the tower's architecture; None where it is.
    `precondition(models, **options)` raises InputError for models that the method cannot merge with these
    options; it is asked before anything is read or written.
    `theory`: what is proved of the gap between its merging and its ensembling, in a sentence; "" for nothing.
    """

    name: str
    kind: Kind
    paper: str
    function: Callable[..., Any]
    version: int = 1
    coefficients: Coefficients | None = None
    needs: tuple[str, ...] = ()
    elementwise: bool = False
    symmetric: bool = True
    survey: Callable[..., Any] | None = None
    measure: Callable[..., Any] | None = None
    masked: bool = False
    split: str = "val"
    refuses: Refuses = defined_everywhere
    precondition: Callable[..., None] | None = None
    theory: str = ""

    @property
    def summary(self) -> str:
        return (inspect.getdoc(self.function) or "").split("\n", 1)[0]

    @property
    def accepts(self) -> frozenset[str]:
        """The names of what the engine may give the function: base, statistics and so on."""
        return PROVIDED & set(inspect.signature(self.function).parameters)

    @property
    def needs_base(self) -> bool:
        return "base" in self.needs

    @property
    def has_counterpart(self) -> bool:
        """Whether predictions can be combined as the parameters are, for some options at least."""
        return self.coefficients is not None or self.kind == "ligand"

    @property
    def streams(self) -> bool:
        """Whether one tensor at a time is enough, once what is measured has been measured."""
        return self.kind in ("streamed", "measured") or self.masked

    @functools.cached_property
    def schema(self) -> dict[str, Option]:
        """The options, read from the signatures' keyword-only parameters."""
        return read_options(self.function, self.survey, self.measure)

    @property
    def options(self) -> dict[str, Any]:
        """The option names with their defaults."""
        return {name: option.default for name, option in self.schema.items()}

    @property
    def grid(self) -> dict[str, tuple[Any, ...]]:
        """Options that experiments choose on val, with the values that they try."""
        return {name: option.grid for name, option in self.schema.items() if option.grid}

    def check(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The given options as the method takes them; raises InputError as `resolve`."""
        for name in given:
            if name not in self.schema:
                raise unknown(f"option of {self.name}", name, self.schema)
        return {name: self.schema[name].check(self.name, value) for name, value in given.items()}

    def resolve(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The given options over the defaults, checked.

        Raises InputError for an option that the method does not have, and for a value that it cannot take.
        """
        resolved = {**self.options, **self.check(given)}
        if missing := [name for name, value in resolved.items() if value is inspect.Parameter.empty]:
            about = self.schema[missing[0]].about.text
            raise InputError(f"{self.name} needs the option {missing[0]!r}, the {about}")
        return resolved

    def check_counts(self, options: Mapping[str, Any], n: int) -> None:
        """Raises InputError where an option has not one number for each of the n experts, as it should."""
        for name, value in options.items():
            counted = isinstance(value, tuple) and self.schema[name].about.per_expert
            if counted and len(value) != n:
                raise InputError(
                    f"{self.name}: option {name!r} has {len(value)} number{'s' * (len(value) != 1)}, but "
                    f"there are {n} experts: give one for each"
                )

    def call(
        self, function: Callable[..., Any], *arguments: Any, options: Mapping[str, Any], **more: Any
    ) -> Any:
        """One of the method's functions with those of the options, and of `more`, that it has."""
        return function(*arguments, **accepted(function, {**options, **more}))


METHODS: Registry[Method] = Registry("method", "neulig_ray.merging.methods")
