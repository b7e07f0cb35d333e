"""Merged models that serve a task, or batches of images, and what they predict."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from neulig_ray.evaluation.context import EvaluationContext
from neulig_ray.seeds import stable_generator

BatchRule = Callable[[torch.Tensor], torch.Tensor]
Part = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # rows, beta, logits


@dataclass(frozen=True)
class Betas:
    """The betas of one ligand in a context.

    `images`: task -> (N, n), of every image of the split under test; `tasks`: task -> (n,), means over
    another split (val); `everything` (n,): the mean of the tasks' betas.
    """

    images: Mapping[str, torch.Tensor]
    tasks: Mapping[str, torch.Tensor]

    @property
    def everything(self) -> torch.Tensor:
        return torch.stack(list(self.tasks.values())).mean(0)


@dataclass(frozen=True)
class Predictions:
    """What merged models predict of one task's images `rows` (K,): logits (K, C), by `beta` (K, n)."""

    task: str
    rows: torch.Tensor
    beta: torch.Tensor
    logits: torch.Tensor
    batch_size: int | None = None
    order_seed: int | None = None


def per_task(context: EvaluationContext, betas: Mapping[str, torch.Tensor]) -> Iterator[Predictions]:
    """One merged model for each task, with the beta (n,) given for it."""
    for task, beta in betas.items():
        rows = torch.arange(len(context.images[task]))
        logits = context.logits(context.merge(beta), task, rows)
        yield Predictions(task, rows, beta.expand(len(rows), -1), logits)


def per_batch(
    context: EvaluationContext, betas: Betas, rule: BatchRule, batch_size: int, order_seeds: Sequence[int]
) -> Iterator[Predictions]:
    """Batches of one task: the reference's evaluation (`batch-first`), which uses that they are pure.

    `order_seeds`: of the shuffles.
    """
    for order_seed in order_seeds:
        for task in context.tasks:
            order = stable_generator("order", order_seed, task).permutation(len(context.images[task]))
            parts: list[Part] = []
            for rows in torch.split(torch.from_numpy(order), batch_size):
                beta = rule(betas.images[task][rows])
                logits = context.logits(context.merge(beta), task, rows)
                parts.append((rows, beta.expand(len(rows), -1), logits))
            yield _joined(task, parts, batch_size, order_seed)


def per_mixed_batch(
    context: EvaluationContext, betas: Betas, rule: BatchRule, batch_size: int, order_seeds: Sequence[int]
) -> Iterator[Predictions]:
    """Batches of a shuffled mixture of all tasks' images, each image judged by its own task's head."""
    sizes = [len(context.images[task]) for task in context.tasks]
    slots = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes))
    rows_in_task = torch.cat([torch.arange(size) for size in sizes])
    image_betas = torch.cat([betas.images[task] for task in context.tasks])
    for order_seed in order_seeds:
        order = stable_generator("order", order_seed, *context.tasks).permutation(len(slots))
        parts: dict[str, list[Part]] = {task: [] for task in context.tasks}
        for batch in torch.split(torch.from_numpy(order), batch_size):
            beta = rule(image_betas[batch])
            rows = {
                task: rows_in_task[batch[slots[batch] == slot]] for slot, task in enumerate(context.tasks)
            }
            for task, logits in context.mixed_logits(context.merge(beta), rows).items():
                parts[task].append((rows[task], beta.expand(len(rows[task]), -1), logits))
        for task in context.tasks:
            yield _joined(task, parts[task], batch_size, order_seed)


def _joined(task: str, parts: list[Part], batch_size: int, order_seed: int) -> Predictions:
    rows, beta, logits = (torch.cat(column) for column in zip(*parts, strict=True))
    return Predictions(task, rows, beta, logits, batch_size, order_seed)


def first_row(beta: torch.Tensor) -> torch.Tensor:
    """The reference's rule: the first image's beta serves its batch (B, n)."""
    return beta[0]


def mean_row(beta: torch.Tensor) -> torch.Tensor:
    """The mean of a batch's betas (B, n) serves the batch."""
    return beta.mean(0)
