"""Masked methods: one shared task vector, and a binary mask for each task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from neulig_ray.errors import InputError
from neulig_ray.merging.declare.method import Decorator, Kind, declare
from neulig_ray.merging.declare.per_tensor import PerTensorMethod
from neulig_ray.merging.engine import merge_masks
from neulig_ray.merging.inputs import MergeInputs
from neulig_ray.merging.merged_models import MergedModels


@dataclass(frozen=True)
class MaskedMethod(PerTensorMethod):
    """Routed by the task, whose identity it needs at test time."""

    kind: ClassVar[Kind] = "routed"
    planned_granularity: ClassVar[str] = "task"
    masked: ClassVar[bool] = True

    elementwise: bool = True

    def run(self, inputs: MergeInputs, options: Mapping[str, Any]) -> MergedModels:
        if inputs.base is None:
            raise InputError(f"{self.name} needs the base model: give its origin")
        model = merge_masks(self, inputs.experts, inputs.base, options)
        states = {task: model.dense(label) for task, label in inputs.by_task(inputs.labels).items()}
        return MergedModels(states, "task", model.parameters)


def masked(
    name: str,
    *,
    paper: str,
    version: int = 1,
    survey: Callable[..., Any] | None = None,
    needs: Sequence[str] = (),
) -> Decorator[MaskedMethod]:
    """Declare an elementwise method that keeps one shared task vector and a binary mask for each task.

    The function is as for `streamed(elementwise=True)`, but returns the shared vector (size,) and masks
    bool (n, size); task t's model is base + r_t mask_t * shared, with r_t = `survey.rescalers[t]` where the
    survey has such an attribute, and 1 elsewhere. It needs the task's identity at test time.
    """
    needs = ("base", *needs, "task at test")
    return declare(MaskedMethod, **locals())
