"""What methods merge: experts of one architecture, their base, images of their tasks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import nn

from neulig_ray.errors import InputError
from neulig_ray.weights.sources import Source, State

T = TypeVar("T")


class Images(Protocol):
    """Images of one task, without labels."""

    def __len__(self) -> int: ...

    def pixels(self, rows: torch.Tensor) -> torch.Tensor:
        """Normalised pixels float32 (len(rows), 3, S, S) of the images `rows` (int64)."""
        ...


def batches(
    images: Images, batch_size: int, *, count: int | None = None, seed: int = 0
) -> Iterator[torch.Tensor]:
    """`count` images (all, where it is None or more than there are) once, in a seeded order, in batches."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    for start in range(0, len(order), batch_size):
        yield images.pixels(order[start : start + batch_size])


def endless(images: Images, batch_size: int, *, seed: int = 0) -> Iterator[torch.Tensor]:
    """Batches of exactly `batch_size` images for ever: each pass in a new seeded order, its rest left out.

    Where there are fewer images than that, each batch is all of them.
    """
    generator = torch.Generator().manual_seed(seed)
    batch_size = min(batch_size, len(images))
    while True:
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(images) - batch_size + 1, batch_size):
            yield images.pixels(order[start : start + batch_size])


def no_score(state: State) -> Mapping[str, float]:
    """Stands in where nothing is labelled: raises InputError."""
    raise InputError("accuracies of merged models need labelled val images, and there are none")


@dataclass(frozen=True)
class MergeInputs:
    """n experts of one architecture, and whatever else methods take.

    `tower`: the architecture in eval mode; its own weights are neither used nor changed. `experts`, `images`
    and `heads` (C, d) share their keys, the labels of the experts in the order of the merge; `tasks` are the
    experts' tasks in that order, the labels where they are not given. `base`: the origin's state.
    `statistics`: of each expert, for measured methods. `images` are of the split that the method looks at.
    `score(state)`: label -> accuracy in percent of a merged state on labelled val images of that task.
    Mappings may read what they hold when it is looked up.
    """

    tower: nn.Module
    experts: Mapping[str, State]
    base: State | None = None
    images: Mapping[str, Images] = field(default_factory=dict)
    heads: Mapping[str, torch.Tensor] = field(default_factory=dict)
    score: Callable[[State], Mapping[str, float]] = no_score
    seed: int = 0
    statistics: Sequence[Source] = ()
    tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.tasks:
            object.__setattr__(self, "tasks", self.labels)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.experts)

    def by_task(self, values: Sequence[T]) -> dict[str, T]:
        """Task -> the value of its expert, of values in the order of the merge."""
        return dict(zip(self.tasks, values, strict=True))
