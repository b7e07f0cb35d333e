"""What a merging method declares, and the decorator that its file uses: the signature is the schema."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from neulig_ray.errors import InputError, unknown
from neulig_ray.registry import Registry

Kind = Literal["reference", "ensemble", "streamed", "ligand"]
Coefficients = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Method:
    """One way of combining collaborators.

    `coefficients(n, **options)` is the prediction-level counterpart: the n weights lambda of
    z_0 + sum lambda_i (z_i - z_0); None where the method is not linear in the task vectors with scalar
    coefficients, and then it has no ensembling accuracy.
    """

    name: str
    kind: Kind
    paper: str
    function: Callable[..., Any]
    version: int = 1
    needs_base: bool = False
    coefficients: Coefficients | None = None

    @property
    def summary(self) -> str:
        return (inspect.getdoc(self.function) or "").split("\n", 1)[0]

    @property
    def options(self) -> dict[str, Any]:
        """The option names with their defaults, read from the signature's keyword-only parameters."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "base"}

    def resolve(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The given options over the defaults; raises InputError for one that the method does not have."""
        for name in given:
            if name not in self.options:
                raise unknown(f"option of {self.name}", name, self.options)
        resolved = {**self.options, **given}
        if missing := [name for name, value in resolved.items() if value is inspect.Parameter.empty]:
            raise InputError(f"{self.name} needs the option {missing[0]!r}")
        return resolved


METHODS: Registry[Method] = Registry("method", "neulig_ray.merging")


def _declare(
    name: str,
    kind: Kind,
    function: Callable[..., Any],
    *,
    paper: str,
    version: int,
    coefficients: Coefficients | None = None,
) -> Method:
    needs_base = "base" in inspect.signature(function).parameters
    made = Method(name, kind, paper, function, version, needs_base, coefficients)
    return METHODS.register(name, made, module=function.__module__)


def streamed(
    name: str, *, paper: str, version: int = 1, coefficients: Coefficients | None = None
) -> Callable[[Callable[..., torch.Tensor]], Method]:
    """Declare a function that merges one tensor at a time.

    The function takes the experts' tensors of one name (a sequence of n float32 tensors of one shape), as
    keyword `base` the origin's tensor where it has such a parameter, and its options as keyword-only
    parameters with defaults; it returns the merged tensor and leaves its inputs as they are. It sees float
    parameters only: integer buffers and BatchNorm statistics follow one rule for every method.
    """
    return lambda function: _declare(
        name, "streamed", function, paper=paper, version=version, coefficients=coefficients
    )


def ensemble(name: str, *, paper: str, version: int = 1) -> Callable[[Callable[..., torch.Tensor]], Method]:
    """Declare a function that combines predictions.

    It takes the n experts' embeddings (n, N, d) of N images and the task's head (C, d), and its options as
    keyword-only parameters; it returns scores (N, C), of which the largest is the prediction.
    """
    return lambda function: _declare(name, "ensemble", function, paper=paper, version=version)


def gated(name: str, *, paper: str, version: int = 1) -> Callable[[Callable[..., torch.Tensor]], Method]:
    """Declare what is done with a trained ligand's CoopVecs: a function of beta (N, n) that gives (N, n)."""
    return lambda function: _declare(name, "ligand", function, paper=paper, version=version)


def reference(name: str, *, paper: str, version: int = 1) -> Callable[[Callable[..., torch.Tensor]], Method]:
    """Declare a single model to compare with: a function of its embeddings (N, d) and the task's head (C, d).

    It returns the logits (N, C).
    """
    return lambda function: _declare(name, "reference", function, paper=paper, version=version)


Tensors = Sequence[torch.Tensor]
