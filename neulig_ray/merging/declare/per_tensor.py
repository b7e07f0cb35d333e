"""What methods that merge one tensor at a time have in common: what the engine runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from neulig_ray.merging.declare.method import MergingMethod


@dataclass(frozen=True)
class PerTensorMethod(MergingMethod):
    """A method whose function sees the experts' tensors of one name, once what is measured has been measured.

    `elementwise`: every number of the result depends on the same number of the inputs alone.
    `survey(models, **options)`: a first pass over all tensors, whose result the function is given.
    `precondition(models, **options)` raises InputError for models that the method cannot merge with these
    options; it is asked before anything is read or written.
    `masked`: the function gives a shared vector and a mask for each task in place of the merged tensor.
    `needs_statistics`: it wants to know what was measured on each expert.
    """

    masked: ClassVar[bool] = False
    needs_statistics: ClassVar[bool] = False

    elementwise: bool = False
    survey: Callable[..., Any] | None = None
    precondition: Callable[..., None] | None = None

    @property
    def functions(self) -> tuple[Callable[..., Any] | None, ...]:
        return (self.function, self.survey)
