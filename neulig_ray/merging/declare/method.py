"""What every merging method declares of itself; its signature is its schema."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import nn

from neulig_ray.errors import InputError, unknown
from neulig_ray.merging.inputs import MergeInputs
from neulig_ray.merging.merged_models import MergedModels
from neulig_ray.merging.options import PROVIDED, Option, accepted, read_options
from neulig_ray.registry import Registry

Kind = Literal["reference", "ensemble", "streamed", "measured", "trained", "routed", "ligand"]


@dataclass(frozen=True)
class Method:
    """One way of combining collaborators, of whatever kind: a function and what is declared of it.

    `kind` is the word that people read; what a method is asked for depends on its class.
    `needs` says what it takes besides the experts, in the words that people read.
    `symmetric`: with the default options, permuting the experts changes nothing but rounding; integer
    buffers, which every method takes from the first expert, apart.
    `theory`: what is proved of the gap between its merging and its ensembling, in a sentence; "" for nothing.
    """

    kind: ClassVar[Kind]

    name: str
    function: Callable[..., Any]
    paper: str = ""
    version: int = 1
    needs: tuple[str, ...] = ()
    symmetric: bool = True
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
    def has_ensemble_equivalent(self) -> bool:
        """Whether predictions can be combined as it combines parameters, for some options at least."""
        return False

    def unsupported_reason(self, tower: nn.Module) -> str | None:
        """Why the method is not defined for the tower's architecture; None where it is."""
        return None

    @property
    def functions(self) -> tuple[Callable[..., Any] | None, ...]:
        """Those of the method's functions whose keyword-only parameters are its options."""
        return (self.function,)

    @functools.cached_property
    def schema(self) -> dict[str, Option]:
        """The options, read from the signatures' keyword-only parameters."""
        return read_options(*self.functions)

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


class MergingMethod(Method):
    """A method that makes models of the experts' parameters.

    `planned_granularity`: what rows carry where the method could not run and give its own word.
    `looks_at_images`: whether it needs more than files of weights, and what was measured before.
    `slow`: whether making its models takes more than seconds, so that they are worth keeping.
    """

    planned_granularity: ClassVar[str] = "global"
    looks_at_images: ClassVar[bool] = False
    slow: ClassVar[bool] = False

    @property
    def rebuilds(self) -> bool:
        """Whether `rebuild` can make the module again to which stored tensors belong."""
        return False

    @property
    def storable(self) -> bool:
        """Whether models that it takes long to make can be kept: states of the tower always can."""
        return True

    def rebuild(self, inputs: MergeInputs, options: Mapping[str, Any]) -> nn.Module:
        """A module as `run` gives it, whose tensors hold nothing yet, of experts that hold nothing either.

        Raises InputError for a method that makes no modules.
        """
        raise InputError(f"{self.name} makes states of the tower, and no modules")

    def run(self, inputs: MergeInputs, options: Mapping[str, Any]) -> MergedModels:
        """The merged models. Raises InputError for wrong options, a missing base or missing images."""
        raise NotImplementedError

    def equivalent_coefficients(self, n: int, options: Mapping[str, Any]) -> torch.Tensor | None:
        """lambda (n,) of the ensemble z_0 + sum lambda_i (z_i - z_0) that the merge of n experts stands for.

        None where the method is not linear in the task vectors with scalar coefficients: then it has no
        ensembling accuracy. It may be None for some options alone.
        """
        return None


class PredictingMethod(Method):
    """A method that combines nothing but predictions: its function gives the scores itself."""

    def predict(
        self, embeddings: torch.Tensor, head: torch.Tensor, options: Mapping[str, Any]
    ) -> torch.Tensor:
        """Scores (N, C), of which the largest is the prediction, of N images under the task's head (C, d).

        embeddings: (n, N, d) of the n experts, or (N, d) of a single model. Raises InputError for wrong
        options and for scores of another shape.
        """
        resolved = self.resolve(options)
        self.check_counts(resolved, embeddings.shape[0] if embeddings.dim() == 3 else 1)
        scores: torch.Tensor = self.call(self.function, embeddings, head, options=resolved)
        check_shape(self, scores, (embeddings.shape[-2], head.shape[0]), "scores (images, classes)")
        return scores


def check_shape(method: Method, found: Any, shape: tuple[int, ...], what: str) -> None:
    """Raises InputError where a method's function gave no tensor of this shape."""
    if not isinstance(found, torch.Tensor) or tuple(found.shape) != shape:
        given = tuple(found.shape) if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
        raise InputError(f"{method.name} gives {given}: its function must return {what}, here {shape}")


METHODS: Registry[Method] = Registry("method", "neulig_ray.merging.methods")
M = TypeVar("M", bound=Method)
Decorator = Callable[[Callable[..., Any]], M]


def declare(kind: type[M], name: str, **declared: Any) -> Decorator[M]:
    """The decorator that makes a function a registered method of this kind.

    Raises InputError for a default, or a value of a grid, that the option itself would refuse.
    """

    def decorate(function: Callable[..., Any]) -> M:
        method = kind(name=name, function=function, **_with_base(declared, function))
        for option, choice in method.schema.items():
            if not choice.required:
                choice.check(name, choice.default)
            for value in choice.grid:
                method.schema[option].check(name, value)
        METHODS.register(name, method, module=function.__module__)
        return method

    return decorate


def _with_base(declared: Mapping[str, Any], function: Callable[..., Any]) -> dict[str, Any]:
    """What is declared, with the base among the needs where the function cannot do without it."""
    base = inspect.signature(function).parameters.get("base")
    required = base is not None and base.default is base.empty
    needs = tuple(declared.get("needs", ()))
    if required and "base" not in needs:
        needs = ("base", *needs)
    return {**declared, "needs": needs} if needs else dict(declared)
