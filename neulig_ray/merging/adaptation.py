"""Adapting on unlabelled images by minimising the entropy of the predictions: AdaMerging's objective."""

import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Literal

import torch

from neulig_ray.errors import InputError, TrainingDiverged
from neulig_ray.merging.inputs import MergeInputs, endless
from neulig_ray.merging.options import About

Steps = Annotated[int, About("number of optimiser steps, each on one batch of every task", at_least=0)]
BatchSize = Annotated[int, About("number of images of each task in a step", at_least=1)]
LearningRate = Annotated[float, About("learning rate of Adam", above=0)]
AdaptOn = Annotated[
    Literal["val", "test"], About("split whose images are looked at, without labels; test is transductive")
]


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Shannon entropy in nats of softmax(logits), logits (B, C), averaged over the batch."""
    log_probabilities = logits.log_softmax(-1)
    return -(log_probabilities.exp() * log_probabilities).sum(-1).mean()


def task_batches(
    bench: MergeInputs, batch_size: int
) -> Iterator[Iterator[tuple[torch.Tensor, torch.Tensor]]]:
    """For each step for ever: every task's next images (B, 3, S, S) and its head (C, d), one task at a time.

    What a task is shown depends on the bench's seed and the task's label, not on the order of the tasks.
    Raises InputError for a task without images.
    """
    for label, images in bench.images.items():
        if not len(images):
            raise InputError(
                f"no unlabelled image of {label!r} to adapt on: leave its expert out, or give some"
            )
    device = next(bench.tower.parameters()).device
    heads = {label: bench.heads[label].to(device) for label in bench.labels}
    streams = {
        label: endless(bench.images[label], batch_size, seed=zlib.crc32(f"{bench.seed} {label}".encode()))
        for label in bench.labels
    }
    while True:
        yield ((next(stream).to(device), heads[label]) for label, stream in streams.items())


def backward_each(losses: Iterable[torch.Tensor]) -> float:
    """Backpropagate each loss before the next is computed: one task's graph at a time. Returns the sum."""
    total = 0.0
    for loss in losses:
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total


def minimise(
    method: str,
    parameters: Iterable[torch.Tensor],
    backward: Callable[[], float],
    *,
    steps: int,
    learning_rate: float,
    annealed: bool = False,
) -> list[float]:
    """Adam on what `backward()` differentiates and whose loss it returns; gives the losses of all steps.

    `annealed`: the learning rate falls to zero along half a cosine. Raises TrainingDiverged, naming the
    method and the step, when a loss becomes NaN or infinite.
    """
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1)) if annealed else None
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        losses.append(backward())
        if not math.isfinite(losses[-1]):
            raise TrainingDiverged(
                f"{method}: the entropy became {losses[-1]} in step {step + 1} of {steps}; "
                f"use a learning_rate below {learning_rate:g}"
            )
        optimizer.step()
        if schedule is not None:
            schedule.step()
    optimizer.zero_grad()
    return losses
