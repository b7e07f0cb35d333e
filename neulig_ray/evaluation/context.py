"""One combination under test: its experts, the images that models see, the heads that judge."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from neulig_ray.errors import InputError
from neulig_ray.evaluation.forward import embed_with
from neulig_ray.ligand.data import Combination, LigandData, task_of
from neulig_ray.merging.parameters import ExpertStack
from neulig_ray.merging.prediction import ensemble_logits
from neulig_ray.models.archs import Arch
from neulig_ray.models.logits import head_logits
from neulig_ray.seeds import stable_generator
from neulig_ray.weights.sources import State, moved

_BATCHES_READ = 8


def choose(count: int, limit: int | None, seed: int, task: str) -> torch.Tensor:
    """The first `limit` of `count` images in an order that seed and task decide: rows int64, rising."""
    order = stable_generator("images", seed, task).permutation(count)
    return torch.from_numpy(np.sort(order[:limit]))


@dataclass
class EvaluationContext:
    """The test (or val) split of the n tasks of a combination.

    `data`: stored embeddings, labels and heads; `images`: task -> uint8 (N, H, W, 3), in the same order;
    `stack`: (at least) the combination's experts; `tower`: their architecture, whatever its weights. Images
    meet models on the tower's device; mixtures are made on the stack's; all else, logits included, is on the
    CPU.
    """

    combination: Combination
    stack: ExpertStack
    tower: nn.Module
    arch: Arch
    data: LigandData
    images: Mapping[str, np.ndarray]
    _flat: torch.Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.data.check(self.combination)
        self.stack = self.stack.select(self.combination)
        self._flat = torch.empty_like(next(iter(self.stack.vectors.values())))
        for task in self.tasks:
            labels = len(self.data.label(task))
            if task not in self.images or len(self.images[task]) != labels:
                found = len(self.images[task]) if task in self.images else "no"
                raise InputError(f"task {task!r}: {found} images for {labels} labels")

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks in the combination's order."""
        return tuple(task_of(c) for c in self.combination)

    @property
    def buffers(self) -> str:
        """What becomes of BatchNorm statistics when parameters are combined."""
        return "average" if self.stack.has_batchnorm else ""

    def own(self, task: str) -> int:
        """Which collaborator is the expert of `task`."""
        return self.tasks.index(task)

    def head(self, task: str) -> torch.Tensor:
        """The head of the task, from the origin of its own expert."""
        return self.data.head(self.combination[self.own(task)])

    def labels(self, task: str, rows: torch.Tensor) -> torch.Tensor:
        return self.data.label(task)[rows]

    def merge(self, beta: torch.Tensor) -> dict[str, torch.Tensor]:
        """theta(beta), overwritten by the next call."""
        return self.stack.combine(beta, out=self._flat)

    def logits(
        self, model: State | nn.Module, task: str, rows: torch.Tensor, batch_size: int = 256
    ) -> torch.Tensor:
        """Logits (len(rows), C) that a model gives images of `task` under the task's head.

        A model is a merged state of the tower, or a module of its own, which sees `batch_size` at a time.
        """
        # Some batches at a time: a whole split of large images does not fit into memory.
        parts = torch.split(rows, batch_size * _BATCHES_READ)
        if not isinstance(model, nn.Module):
            model = moved(model, next(self.tower.parameters()).device)  # once for all parts
            return torch.cat([self.mixed_logits(model, {task: part})[task] for part in parts])
        images = self.images[task]
        seen = [embed_with(model, {}, images[part.numpy()], self.arch, batch_size) for part in parts]
        return head_logits(torch.cat(seen), self.head(task))

    def mixed_logits(self, state: State, rows: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The same for a batch that mixes tasks (task -> rows): each is judged by its own head.

        Images of one size go through the model together.
        """
        by_size: dict[tuple[int, ...], list[str]] = {}
        for task in rows:
            by_size.setdefault(self.images[task].shape[1:], []).append(task)
        found = {}
        for tasks in by_size.values():
            batch = np.concatenate([self.images[task][rows[task].numpy()] for task in tasks])
            seen = embed_with(self.tower, state, batch, self.arch)
            for task, part in zip(tasks, torch.split(seen, [len(rows[t]) for t in tasks]), strict=True):
                found[task] = head_logits(part, self.head(task))
        return found

    def ensemble(self, beta: torch.Tensor, task: str, rows: torch.Tensor) -> torch.Tensor:
        """Logits (len(rows), C) of the weighted stored embeddings; beta (n,) or (len(rows), n)."""
        embeddings = torch.stack([self.data.embedding(c, task)[rows] for c in self.combination])
        return ensemble_logits(beta, embeddings, self.head(task))
