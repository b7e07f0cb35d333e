"""Measured methods: streamed ones that know what was measured on each expert."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from neulig_ray.merging.declare.method import Decorator, Kind, declare
from neulig_ray.merging.declare.per_tensor import PerTensorMethod
from neulig_ray.merging.engine import merge_with
from neulig_ray.merging.inputs import MergeInputs
from neulig_ray.merging.merged_models import MergedModels

Measure = Callable[..., dict[str, torch.Tensor]]


@dataclass(frozen=True)
class MeasuredMethod(PerTensorMethod):
    """`measure(tower, images, head, **options)` gives the statistics of one expert: name -> tensor."""

    kind: ClassVar[Kind] = "measured"
    needs_statistics: ClassVar[bool] = True
    slow: ClassVar[bool] = True

    measure: Measure = field(kw_only=True)

    @property
    def functions(self) -> tuple[Callable[..., Any] | None, ...]:
        return (*super().functions, self.measure)

    def run(self, inputs: MergeInputs, options: Mapping[str, Any]) -> MergedModels:
        base = inputs.base if "base" in self.accepts else None
        state = merge_with(self, inputs.experts, base, options, statistics=inputs.statistics)
        return MergedModels.shared(state, inputs)


def measured(
    name: str,
    *,
    paper: str,
    measure: Measure,
    version: int = 1,
    elementwise: bool = False,
    survey: Callable[..., Any] | None = None,
    precondition: Callable[..., None] | None = None,
    needs: Sequence[str] = ("train images",),
) -> Decorator[MeasuredMethod]:
    """Declare a streamed function that also sees statistics of each expert over its own task's images.

    `measure(tower, images, head, **options)` collects them once for each expert: `tower` an nn.Module in eval
    mode with the expert's weights, `images` (merging/inputs.py) of its own task, `head` (C, d); it returns
    name -> tensor, the same names for every expert. Where it has a parameter `seed`, it is given the
    experiment's. The merging function finds those of its tensor in its keyword `statistics`, a sequence with
    one mapping (name -> tensor, read when indexed) for each expert; elementwise functions find there the
    pieces (n, size) of the statistics that have the tensor's name, which must have its shape, and nothing
    where there are none. Options of `measure` are options of the method.
    """
    return declare(MeasuredMethod, **locals())
