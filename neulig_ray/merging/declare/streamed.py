"""Streamed methods: one tensor at a time is enough."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from neulig_ray.merging.declare.method import Decorator, Kind, declare
from neulig_ray.merging.declare.per_tensor import PerTensorMethod
from neulig_ray.merging.engine import merge_with
from neulig_ray.merging.inputs import MergeInputs
from neulig_ray.merging.merged_models import MergedModels

Coefficients = Callable[..., torch.Tensor | None]


@dataclass(frozen=True)
class StreamedMethod(PerTensorMethod):
    """`coefficients(n, **options)` gives `equivalent_coefficients`."""

    kind: ClassVar[Kind] = "streamed"

    coefficients: Coefficients | None = None

    @property
    def has_ensemble_equivalent(self) -> bool:
        return self.coefficients is not None

    def equivalent_coefficients(self, n: int, options: Mapping[str, Any]) -> torch.Tensor | None:
        if self.coefficients is None:
            return None
        found: torch.Tensor | None = self.call(self.coefficients, n, options=self.resolve(options))
        return found

    def run(self, inputs: MergeInputs, options: Mapping[str, Any]) -> MergedModels:
        base = inputs.base if "base" in self.accepts else None
        state = merge_with(self, inputs.experts, base, options)
        return MergedModels.shared(state, inputs)


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
) -> Decorator[StreamedMethod]:
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
    experts, a missing base or a list of the wrong length. `coefficients(n, **options)` gives the n weights
    lambda of the ensemble z_0 + sum lambda_i (z_i - z_0) that combines predictions as the method combines
    parameters, where there is one.
    """
    return declare(StreamedMethod, **locals())
