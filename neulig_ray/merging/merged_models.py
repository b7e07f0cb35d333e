"""What a method of any kind returns: the models that it made, what one of them serves, what they take."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from neulig_ray.errors import InputError
from neulig_ray.merging.inputs import MergeInputs
from neulig_ray.weights.sources import State

Model = State | nn.Module


@dataclass(frozen=True)
class MergedModels:
    """`by_task`: task -> a state of the tower, or a module of its own, pixels (B, 3, S, S) -> (B, d).

    Tasks may share a model, or modules of theirs may share parts: what is shared is one object in memory.
    `granularity` as in results: `global` for one static model, `task` where the model depends on the task,
    `sample` for modules that route each image, `batch-mean` for those that route a batch.
    `parameters`: how many numbers are kept at inference, in float32; `count_parameters` counts them.
    """

    by_task: Mapping[str, Model]
    granularity: str
    parameters: int

    @classmethod
    def shared(cls, model: Model, inputs: MergeInputs, granularity: str = "global") -> "MergedModels":
        """One model for all tasks."""
        return cls.counted(dict.fromkeys(inputs.tasks, model), inputs, granularity)

    @classmethod
    def counted(
        cls, by_task: Mapping[str, Model], inputs: MergeInputs, granularity: str = "task"
    ) -> "MergedModels":
        """A model for each task; what several of them share is counted once."""
        return cls(by_task, granularity, count_parameters(by_task.values(), inputs.tower))

    @classmethod
    def of(cls, found: Any, inputs: MergeInputs, method: str) -> "MergedModels":
        """What the function of a method returned: a state or a module stands for all tasks.

        A module is taken to route each image. Raises InputError, naming the method, for anything else, and
        for `MergedModels` whose tasks are not those of the inputs.
        """
        if isinstance(found, nn.Module):
            return cls.shared(found, inputs, "sample")
        if not isinstance(found, cls):
            if not isinstance(found, Mapping):
                raise InputError(
                    f"{method} returned a {type(found).__name__}: its function must return a state dict, "
                    "an nn.Module or MergedModels"
                )
            return cls.shared(found, inputs)
        if found.by_task.keys() != set(inputs.tasks):
            raise InputError(
                f"{method} returned models of {', '.join(found.by_task) or 'no task'}, but the tasks are "
                f"{', '.join(inputs.tasks)}: MergedModels needs one for each"
            )
        return found

    @property
    def modules(self) -> bool:
        """Whether some of the models are no states of the tower: such keep their own BatchNorm statistics."""
        return any(isinstance(model, nn.Module) for model in self.by_task.values())


def count_parameters(models: Iterable[Model], tower: nn.Module) -> int:
    """Numbers that the models keep, each place in memory once.

    Of a state, the parameters of the tower: buffers belong to its architecture. Of a module, all parameters
    and buffers: they are everything that it has.
    """
    names = [name for name, _ in tower.named_parameters()]
    tensors: list[torch.Tensor] = []
    for model in models:
        if isinstance(model, nn.Module):
            tensors += [*model.parameters(), *model.buffers()]
        else:
            tensors += [model[name] for name in names if name in model]
    memory: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)  # storage -> ranges in it
    for tensor in tensors:
        if tensor.numel():
            extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            start = int(tensor.storage_offset())
            memory[_storage(tensor), tensor.element_size()].append((start, start + extent))
    return sum(_covered(ranges) for ranges in memory.values())


def _storage(tensor: torch.Tensor) -> int:
    """An identity of the memory that a tensor lies in; its own where it has none, as on device meta."""
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except RuntimeError:
        return id(tensor)


def _covered(ranges: list[tuple[int, int]]) -> int:
    """How many places the half-open ranges cover together."""
    covered = end = 0
    for start, stop in sorted(ranges):
        covered += max(0, stop - max(start, end))
        end = max(end, stop)
    return covered
