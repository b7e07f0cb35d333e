"""What a merging method declares, and the decorators that its file uses: the signature is the schema."""

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
            raise InputError(f"{self.name} needs the option {missing[0]!r}")
        return resolved

    def check_counts(self, options: Mapping[str, Any], n: int) -> None:
        """Raises InputError where an option has not one number for each of the n experts, as it should."""
        for name, value in options.items():
            counted = isinstance(value, tuple) and self.schema[name].about.per_expert
            if counted and len(value) != n:
                raise InputError(
                    f"{self.name}: option {name!r} has {len(value)} numbers, but there are {n} experts: "
                    "give one for each"
                )

    def call(
        self, function: Callable[..., Any], *arguments: Any, options: Mapping[str, Any], **more: Any
    ) -> Any:
        """One of the method's functions with those of the options, and of `more`, that it has."""
        return function(*arguments, **accepted(function, {**options, **more}))


METHODS: Registry[Method] = Registry("method", "neulig_ray.merging.methods")
Decorator = Callable[[Callable[..., Any]], Method]


def _declare(name: str, kind: Kind, function: Callable[..., Any], **declared: Any) -> Method:
    needs = declared.pop("needs", ())
    base = inspect.signature(function).parameters.get("base")
    if base is not None and base.default is base.empty and "base" not in needs:
        needs = ("base", *needs)
    made = Method(name, kind, function=function, needs=tuple(needs), **declared)
    for option, choice in made.schema.items():
        if not choice.required:
            choice.check(name, choice.default)
        for value in choice.grid:
            made.schema[option].check(name, value)
    return METHODS.register(name, made, module=function.__module__)


def streamed(
    name: str,
    *,
    paper: str,
    version: int = 1,
    elementwise: bool = False,
    symmetric: bool = True,
    survey: Callable[..., Any] | None = None,
    coefficients: Coefficients | None = None,
    precondition: Callable[..., None] | None = None,
) -> Decorator:
    """Declare a function that merges one tensor at a time.

    The function takes the experts' tensors of one name and returns the merged tensor, float32; it leaves its
    inputs as they are. What it is given besides, where it has a keyword-only parameter of that name:
    `base`, the origin's tensor; `name`, the tensor's name; `start`, where a piece begins in the tensor's flat
    view; `survey`, what the function `survey(models, **options)` found in a first pass over all tensors. Its
    other keyword-only parameters are its options.

    `elementwise` says that every number of the result depends on the same number of the inputs alone: the
    engine then hands over flat pieces, stacked (n, size), so that memory depends neither on n nor on the
    largest tensor. Otherwise it hands over whole tensors, each read when it is indexed.

    The function sees float parameters only: integer buffers and BatchNorm statistics follow one rule for
    every method. `symmetric`: permuting the experts changes nothing. A method that can do without its base
    gives the keyword a default of None. `precondition(models, **options)` raises InputError for a number of
    experts, a missing base or a list of the wrong length.
    """
    return lambda function: _declare(
        name,
        "streamed",
        function,
        paper=paper,
        version=version,
        elementwise=elementwise,
        symmetric=symmetric,
        survey=survey,
        coefficients=coefficients,
        precondition=precondition,
    )


def masked(
    name: str,
    *,
    paper: str,
    version: int = 1,
    survey: Callable[..., Any] | None = None,
    needs: Sequence[str] = (),
) -> Decorator:
    """Declare an elementwise method that keeps one shared task vector and a binary mask for each task.

    The function is as for `streamed(elementwise=True)`, but returns the shared vector (size,) and masks
    bool (n, size); task t's model is base + r_t mask_t * shared, with r_t = `survey.rescalers[t]` where the
    survey has such an attribute, and 1 elsewhere. It needs the task's identity at test time.
    """
    return lambda function: _declare(
        name,
        "routed",
        function,
        paper=paper,
        version=version,
        elementwise=True,
        masked=True,
        survey=survey,
        needs=("base", *needs, "task at test"),
    )


def measured(
    name: str,
    *,
    paper: str,
    measure: Callable[..., dict[str, torch.Tensor]],
    version: int = 1,
    elementwise: bool = False,
    survey: Callable[..., Any] | None = None,
    precondition: Callable[..., None] | None = None,
    needs: Sequence[str] = ("train images",),
) -> Decorator:
    """Declare a streamed function that also sees statistics of each expert over its own task's images.

    `measure(tower, images, head, **options)` collects them once for each expert: `tower` an nn.Module in eval
    mode with the expert's weights, `images` (merging/workbench.py) of its own task, `head` (C, d); it returns
    name -> tensor. The merging function finds those of its tensor in its keyword `statistics`, a sequence
    with one mapping (name -> tensor, read when indexed) for each expert; elementwise functions find there the
    pieces (n, size) of the statistics that have the tensor's name, and nothing where there are none.
    Options of `measure` are options of the method.
    """
    return lambda function: _declare(
        name,
        "measured",
        function,
        paper=paper,
        version=version,
        elementwise=elementwise,
        survey=survey,
        measure=measure,
        precondition=precondition,
        needs=needs,
    )


def trained(
    name: str,
    *,
    paper: str,
    version: int = 1,
    needs: Sequence[str],
    split: str = "val",
    symmetric: bool = True,
) -> Decorator:
    """Declare a method that looks at images while it merges: a function of a `Workbench` and its options.

    It returns the merged state, name -> tensor. `split`: whose images the workbench holds; a method with an
    option `adapt_on` has them from the split that the option names.
    """
    return lambda function: _declare(
        name,
        "trained",
        function,
        paper=paper,
        version=version,
        needs=needs,
        split=split,
        symmetric=symmetric,
    )


def routed(
    name: str, *, paper: str, version: int = 1, needs: Sequence[str], refuses: Refuses = defined_everywhere
) -> Decorator:
    """Declare a method that keeps more than one parameter set at inference: a function of a `Workbench`.

    It returns an nn.Module in eval mode, pixels (B, 3, S, S) -> embeddings (B, d), whose parameters and
    buffers are everything that it keeps. `refuses(tower)` gives the reason, a sentence, where the method is
    not defined for the tower's architecture: experiments then leave it out and say so.
    """
    return lambda function: _declare(
        name, "routed", function, paper=paper, version=version, needs=needs, refuses=refuses
    )


def ensemble(name: str, *, paper: str, version: int = 1) -> Decorator:
    """Declare a function that combines predictions.

    It takes the n experts' embeddings (n, N, d) of N images and the task's head (C, d), and its options as
    keyword-only parameters; it returns scores (N, C), of which the largest is the prediction.
    """
    return lambda function: _declare(name, "ensemble", function, paper=paper, version=version)


def gated(name: str, *, paper: str, version: int = 1, theory: str = "") -> Decorator:
    """Declare what is done with a trained ligand's CoopVecs: a function of beta (N, n) that gives (N, n)."""
    return lambda function: _declare(
        name, "ligand", function, paper=paper, version=version, needs=("train images",), theory=theory
    )


def reference(name: str, *, paper: str, version: int = 1) -> Decorator:
    """Declare a single model to compare with: a function of its embeddings (N, d) and the task's head (C, d).

    It returns the logits (N, C).
    """
    return lambda function: _declare(name, "reference", function, paper=paper, version=version)
