"""What a method that looks at images has before it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from neulig_ray.weights.sources import State


class Images(Protocol):
    """Images of one task, without labels."""

    def __len__(self) -> int: ...

    def pixels(self, rows: torch.Tensor) -> torch.Tensor:
        """Normalised pixels float32 (len(rows), 3, S, S) of the images `rows` (int64)."""
        ...


@dataclass(frozen=True)
class PixelImages:
    """Images that are pixels already: float32 (N, 3, S, S), or whatever the model takes."""

    all: torch.Tensor

    def __len__(self) -> int:
        return len(self.all)

    def pixels(self, rows: torch.Tensor) -> torch.Tensor:
        return self.all[rows]


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


@dataclass(frozen=True)
class Workbench:
    """n experts of one architecture, and images of their n tasks.

    `tower`: the architecture in eval mode; its own weights are neither used nor changed. `experts`, `images`
    and `heads` (C, d) share their keys, the labels of the experts in the order of the merge. `images` are of
    the split that the method adapts on. `score(state)`: label -> accuracy in percent of a merged state on
    labelled val images of that task.
    """

    tower: nn.Module
    experts: Mapping[str, State]
    base: State | None
    images: Mapping[str, Images]
    heads: Mapping[str, torch.Tensor]
    score: Callable[[State], Mapping[str, float]]
    seed: int = 0

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.experts)
