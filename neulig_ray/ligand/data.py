"""What a ligand sees: stored embeddings, labels and frozen heads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch

from neulig_ray.arrays import shared_tensor
from neulig_ray.errors import InputError

Combination = tuple[str, ...]
K = TypeVar("K")


def task_of(collaborator: str) -> str:
    """The task of a collaborator "task@origin"."""
    return collaborator.split("@", 1)[0]


def combination_key(combination: Sequence[str]) -> str:
    """A combination as one string: its collaborators, comma-joined."""
    return ",".join(combination)


@dataclass(frozen=True)
class LigandData:
    """One split of every task.

    `embeddings`: (collaborator, task) -> float32 (N, d), not normalised; `labels`: task -> int64 (N,);
    `heads`: collaborator -> float32 (C, d), the frozen zero-shot head of its task from its own origin;
    `features`: (origin, task) -> float32 (N, D), block features, where a gate sees them.
    Arrays may lie in shared read-only memory.
    """

    embeddings: Mapping[tuple[str, str], np.ndarray]
    labels: Mapping[str, np.ndarray]
    heads: Mapping[str, np.ndarray]
    features: Mapping[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def embedding(self, collaborator: str, task: str) -> torch.Tensor:
        """(N, d): how `collaborator` (or an origin) sees the images of `task`."""
        return shared_tensor(self._get(self.embeddings, (collaborator, task), "embeddings"))

    def label(self, task: str) -> torch.Tensor:
        return shared_tensor(self._get(self.labels, task, "labels"))

    def head(self, collaborator: str) -> torch.Tensor:
        return shared_tensor(self._get(self.heads, collaborator, "heads"))

    def feature(self, origin: str, task: str) -> torch.Tensor:
        """(N, D): how the blocks of `origin` see the images of `task`."""
        return shared_tensor(self._get(self.features, (origin, task), "block features"))

    def stacked(self, combination: Combination, task: str) -> torch.Tensor:
        """(n, N, d): the images of `task` as each collaborator sees them."""
        return torch.stack([self.embedding(c, task) for c in combination])

    def check(self, combination: Combination) -> None:
        """Raises InputError where something is missing, empty or does not fit together."""
        tasks = [task_of(c) for c in combination]
        if twice := {t for t in tasks if tasks.count(t) > 1}:
            raise InputError(f"{combination_key(combination)}: two collaborators of the task {min(twice)!r}")
        dims = {self.embedding(c, t).shape[1] for c in combination for t in tasks}
        dims |= {self.head(c).shape[1] for c in combination}
        if len(dims) > 1:
            raise InputError(
                f"{combination_key(combination)}: embeddings and heads of different dimensions "
                f"{sorted(dims)}; use collaborators of one architecture"
            )
        for own in combination:
            task, labels, classes = task_of(own), self.label(task_of(own)), self.head(own).shape[0]
            if not len(labels):
                raise InputError(f"task {task!r} has no image in this split")
            if int(labels.min()) < 0 or int(labels.max()) >= classes:
                raise InputError(
                    f"task {task!r}: labels run from {int(labels.min())} to {int(labels.max())}, but the "
                    f"head of {own!r} has {classes} classes"
                )
            for collaborator in combination:
                if (found := len(self.embedding(collaborator, task))) != len(labels):
                    raise InputError(
                        f"task {task!r}: {found} embeddings by {collaborator!r}, but {len(labels)} labels"
                    )
            for origin, seen in self.features:
                if seen == task and (found := len(self.feature(origin, task))) != len(labels):
                    raise InputError(
                        f"task {task!r}: {found} block features by {origin!r}, but {len(labels)} labels"
                    )

    @staticmethod
    def _get(mapping: Mapping[K, np.ndarray], key: K, what: str) -> np.ndarray:
        try:
            return mapping[key]
        except KeyError:
            raise InputError(f"no {what} of {key!r} are stored in this split") from None
