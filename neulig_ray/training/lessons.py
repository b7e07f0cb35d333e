"""What a tower learns from: one task or several, and the images of an epoch in their order."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from neulig_ray.models.archs import FinetuneRecipe
from neulig_ray.tasks import Split
from neulig_ray.training.augmentation import draw


class Lesson(NamedTuple):
    """One task of a training. `head` (C, d), frozen, judges its images, and no others.

    `share`: what an epoch shows of its train images, above 0 and at most 1; another part in each epoch.
    """

    head: Tensor
    train: Split
    val: Split
    share: float = 1.0

    @property
    def shown(self) -> int:
        """How many train images an epoch shows."""
        return math.ceil(self.share * len(self.train))


class LessonImages(NamedTuple):
    """The images of one lesson in a batch."""

    lesson: int
    places: np.ndarray  # int64 (B,), rising: where they stand in the batch
    images: Tensor  # uint8 (B, H, W, 3)
    labels: Tensor  # int64 (B,)
    moves: Tensor  # int64 (B, k), the augmentation's


class Batch(NamedTuple):
    """Images of all lessons, which may be of different sizes."""

    parts: list[LessonImages]
    size: int

    def cut(self, rows: slice) -> list[LessonImages]:
        """The parts within some places of the batch; lessons without an image there are left out."""
        found = []
        for lesson, places, *tensors in self.parts:
            start, stop = np.searchsorted(places, (rows.start, rows.stop))
            if start < stop:
                found.append(
                    LessonImages(lesson, places[start:stop], *(each[start:stop] for each in tensors))
                )
        return found


@dataclass(frozen=True)
class EpochImages:
    """The train images of an epoch. `order`: int64 (N, 2), the lesson of each image and its row there."""

    lessons: Sequence[Lesson]
    order: np.ndarray
    moves: Sequence[np.ndarray]  # of each lesson's train images: int64 (N, k)

    @classmethod
    def drawn(
        cls,
        lessons: Sequence[Lesson],
        recipe: FinetuneRecipe,
        generator: np.random.Generator,
        mixing: np.random.Generator,
    ) -> "EpochImages":
        """Order and augmentation by `generator`, how lessons mix by `mixing`.

        The k-th of a lesson's K images lies at a random point of the k-th of K equal parts of the epoch, so
        that every stretch of it mixes the lessons in proportion, by chance in another order.
        """
        rows = [generator.permutation(len(lesson.train))[: lesson.shown] for lesson in lessons]
        moves = [draw(recipe, generator, lesson.train.images.shape) for lesson in lessons]
        points = [(np.arange(len(own)) + mixing.random(len(own))) / len(own) for own in rows]
        pairs = np.stack([np.repeat(np.arange(len(rows)), list(map(len, rows))), np.concatenate(rows)], 1)
        return cls(lessons, pairs[np.argsort(np.concatenate(points), kind="stable")], moves)

    def read(self, chosen: np.ndarray) -> Batch:
        """A batch of the images `chosen` (B, 2), some rows of `order`."""
        parts = []
        for number, lesson in enumerate(self.lessons):
            places = np.flatnonzero(chosen[:, 0] == number)
            if not len(places):
                continue
            rows = chosen[places, 1]
            images = np.ascontiguousarray(lesson.train.images[rows])
            arrays = (images, lesson.train.labels[rows], self.moves[number][rows])
            parts.append(LessonImages(number, places, *map(torch.from_numpy, arrays)))
        return Batch(parts, len(chosen))
