"""What a job will take, counted before anything is started: work and bytes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage

TRAINING_PASSES: Final = 3  # forward passes that a training step costs: forward, and twice that backward


@dataclass(frozen=True)
class Cost:
    """Work in floating-point operations of image towers, and bytes that are stored.

    `unknown`: pieces that cannot be counted yet, since a drawn task's size is known when it is prepared.
    """

    flops: float = 0.0
    bytes: int = 0
    unknown: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes, self.unknown + other.unknown)


class HasSplitSizes(Protocol):
    def split_sizes(self) -> Mapping[str, int] | None:
        """Images of each split as they will be stored; None where that is not known before."""
        ...


class Sizes:
    """How many images prepared tasks have, or will have. Knows the jobs that prepare them by fingerprint."""

    def __init__(self, storage: Storage, tasks: Mapping[str, HasSplitSizes]) -> None:
        self._storage = storage
        self._tasks = tasks
        self._known: dict[str, Mapping[str, int] | None] = {}

    def of(self, data: Artifact) -> Mapping[str, int] | None:
        """Images of each split; None where nothing says how many there will be."""
        if data.fingerprint not in self._known:
            self._known[data.fingerprint] = (
                self._storage.manifest(data)["info"]["images"]
                if self._storage.exists(data)
                else self._tasks[data.fingerprint].split_sizes()
            )
        return self._known[data.fingerprint]

    def passes(self, data: Artifact, split: str, flops: float, most: int | None = None) -> Cost:
        """The cost of looking once at a split, or at `most` of its images, with `flops` for each image."""
        sizes = self.of(data)
        if sizes is None:
            return Cost(unknown=1)
        return Cost(flops * (min(sizes[split], most) if most else sizes[split]))
