"""What one merged parameter vector serves: an image, a batch, a task, everything."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from neulig_ray.errors import unknown
from neulig_ray.evaluation.context import EvaluationContext, choose
from neulig_ray.experiment.config import GRANULARITIES
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


def predict(
    granularity: str,
    context: EvaluationContext,
    betas: Betas,
    *,
    sample_images: int = 200,
    batch_size: int = 128,
    order_seeds: tuple[int, ...] = (0,),
    mixed_order_seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    seed: int = 0,
) -> Iterator[Predictions]:
    """The merged models of one granularity on every task (and, in batches, every order) of the context.

    `sample` looks at `sample_images` images of each task, chosen by `seed`; the others look at all.
    """
    match granularity:
        case "sample":
            return per_sample(context, betas, sample_images, seed)
        case "batch-first" | "batch-mean":
            return per_batch(context, betas, _RULES[granularity], batch_size, order_seeds)
        case "batch-first-mixed" | "batch-mean-mixed":
            return per_mixed_batch(context, betas, _RULES[granularity], batch_size, mixed_order_seeds)
        case "task":
            return per_task(context, betas.tasks)
        case "global":
            return per_task(context, dict.fromkeys(context.tasks, betas.everything))
    raise unknown("granularity", granularity, GRANULARITIES)


def per_sample(
    context: EvaluationContext, betas: Betas, limit: int | None, seed: int
) -> Iterator[Predictions]:
    """The plain way: a merged model for each image in turn."""
    for task in context.tasks:
        rows = choose(len(context.images[task]), limit, seed, task)
        beta = betas.images[task][rows]
        logits = [
            context.logits(context.merge(b), task, row[None]) for b, row in zip(beta, rows, strict=True)
        ]
        yield Predictions(task, rows, beta, torch.cat(logits))


def per_batch(
    context: EvaluationContext, betas: Betas, rule: BatchRule, batch_size: int, order_seeds: tuple[int, ...]
) -> Iterator[Predictions]:
    """Batches of one task: the reference's evaluation (`batch-first`), which uses that they are pure."""
    for order_seed in order_seeds:
        for task in context.tasks:
            order = stable_generator("order", order_seed, task).permutation(len(context.images[task]))
            parts: list[Part] = []
            for rows in torch.split(torch.from_numpy(order), batch_size):
                beta = rule(betas.images[task][rows])
                parts.append(
                    (rows, beta.expand(len(rows), -1), context.logits(context.merge(beta), task, rows))
                )
            yield _joined(task, parts, batch_size, order_seed)


def per_mixed_batch(
    context: EvaluationContext, betas: Betas, rule: BatchRule, batch_size: int, order_seeds: tuple[int, ...]
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


def per_task(context: EvaluationContext, betas: Mapping[str, torch.Tensor]) -> Iterator[Predictions]:
    """One merged model for each task, with the beta (n,) given for it."""
    for task, beta in betas.items():
        rows = torch.arange(len(context.images[task]))
        logits = context.logits(context.merge(beta), task, rows)
        yield Predictions(task, rows, beta.expand(len(rows), -1), logits)


def _joined(task: str, parts: list[Part], batch_size: int, order_seed: int) -> Predictions:
    rows, beta, logits = (torch.cat(column) for column in zip(*parts, strict=True))
    return Predictions(task, rows, beta, logits, batch_size, order_seed)


def first_row(beta: torch.Tensor) -> torch.Tensor:
    """The reference's rule: the first image's beta serves its batch (B, n)."""
    return beta[0]


def mean_row(beta: torch.Tensor) -> torch.Tensor:
    """The mean of a batch's betas (B, n) serves the batch."""
    return beta.mean(0)


_RULES: dict[str, BatchRule] = {
    "batch-first": first_row,
    "batch-first-mixed": first_row,
    "batch-mean": mean_row,
    "batch-mean-mixed": mean_row,
}
