"""The decorators that the files of methods use, one for each kind of method."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from neulig_ray.merging._base import METHODS, Coefficients, Kind, Method, Refuses, defined_everywhere

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
    every method. `symmetric` is as in `Method`. A method that can do without its base
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
    mode with the expert's weights, `images` (merging/adaptation_inputs.py) of its own task, `head` (C, d); it
    returns name -> tensor, the same names for every expert. The merging function finds those of its tensor in
    its keyword `statistics`, a sequence with one mapping (name -> tensor, read when indexed) for each expert;
    elementwise functions find there the pieces (n, size) of the statistics that have the tensor's name, which
    must have its shape, and nothing where there are none.
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
    name: str,
    *,
    paper: str,
    version: int = 1,
    needs: Sequence[str],
    refuses: Refuses = defined_everywhere,
    symmetric: bool = True,
) -> Decorator:
    """Declare a method that keeps more than one parameter set at inference: a function of a `Workbench`.

    It returns an nn.Module in eval mode, pixels (B, 3, S, S) -> embeddings (B, d), whose parameters and
    buffers are everything that it keeps. `refuses(tower)` gives the reason, a sentence, where the method is
    not defined for the tower's architecture: experiments then leave it out and say so.
    """
    return lambda function: _declare(
        name,
        "routed",
        function,
        paper=paper,
        version=version,
        needs=needs,
        refuses=refuses,
        symmetric=symmetric,
    )


def ensemble(name: str, *, paper: str, version: int = 1) -> Decorator:
    """Declare a function that combines predictions.

    It takes the n experts' embeddings (n, N, d) of N images and the task's head (C, d), and its options as
    keyword-only parameters; it returns scores (N, C), of which the largest is the prediction.
    """
    return lambda function: _declare(name, "ensemble", function, paper=paper, version=version)


def gated(name: str, *, paper: str, version: int = 1, theory: str = "") -> Decorator:
    """Declare what is done with a trained ligand's CoopVecs: a function of beta (N, n) that gives (N, n).

    It is not symmetric: a gate starts from random numbers for each place among the experts.
    """
    return lambda function: _declare(
        name,
        "ligand",
        function,
        paper=paper,
        version=version,
        needs=("train images",),
        symmetric=False,
        theory=theory,
    )


def reference(name: str, *, paper: str, version: int = 1) -> Decorator:
    """Declare a single model to compare with: a function of its embeddings (N, d) and the task's head (C, d).

    It returns the logits (N, C).
    """
    return lambda function: _declare(name, "reference", function, paper=paper, version=version)
