"""Fine-tuning: a visual tower learns one task, or several at once, under their frozen zero-shot heads."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neulig_ray.errors import InputError, TrainingDiverged
from neulig_ray.models.archs import Arch, FinetuneRecipe
from neulig_ray.models.clip import embed, image_size, preprocess
from neulig_ray.models.heads import accuracy
from neulig_ray.models.logits import head_logits
from neulig_ray.training.augmentation import augmented
from neulig_ray.training.execution import Execution, ahead
from neulig_ray.training.lessons import Batch, EpochImages, Lesson
from neulig_ray.training.optimisation import adamw, scheduled, take_step, to_cpu

Checkpoint = dict[str, Any]


@dataclass(frozen=True)
class Epoch:
    """What is known after an epoch. `checkpoint` copies to the CPU when it is called."""

    index: int  # epochs finished: 1..epochs
    epochs: int
    loss: float  # mean over this worker's images
    val_accuracy: float  # percent, the mean of the lessons' own
    seconds: float
    images_per_second: float  # of all workers
    checkpoint: Callable[[], Checkpoint]


def finetune(
    tower: nn.Module,
    lessons: Sequence[Lesson],
    arch: Arch,
    recipe: FinetuneRecipe,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    checkpoint: Checkpoint | None = None,
    name: str = "",
) -> Iterator[Epoch]:
    """Train `tower` in place; its weights after the last epoch are the result (no selection).

    With several lessons every batch mixes them in proportion, each image under its own lesson's head.
    Order and augmentation of an epoch are a function of (seed, epoch), so that a run resumed from a
    `checkpoint` is bit-identical to an undisturbed one; from the last epoch's, nothing is yielded and
    `tower` holds the result. Each of `world_size` workers takes every world_size-th image of each global
    batch; `wrap` is where data parallelism goes, and averages gradients. Images left over at the end of an
    epoch wait for the next one, or are a smaller batch where the recipe keeps it. Raises TrainingDiverged,
    naming `name`, epoch and step, and InputError for batches too small to share.
    """
    device = torch.device(device)
    images = sum(lesson.shown for lesson in lessons)
    batch_size = min(recipe.batch_size, images)
    if batch_size // world_size < 2:
        raise InputError(
            f"{name}: batches of {batch_size} images cannot be shared by {world_size} workers; "
            "use fewer workers or a larger batch_size"
        )
    execution = Execution(recipe, device, world_size)
    execution.prepare(tower)
    heads = [lesson.head.to(device) for lesson in lessons]
    done = 0
    if checkpoint is not None:
        tower.load_state_dict(checkpoint["tower"])
        done = int(checkpoint["epoch"])
    parallel = wrap(execution.compiled(tower))
    optimizer = adamw(tower, recipe.learning_rate, recipe.weight_decay)
    if checkpoint is not None:
        optimizer.load_state_dict(checkpoint["optimizer"])

    batches = _batches(images, batch_size, 2 * world_size if recipe.keep_last else batch_size)
    per_epoch = len(batches)
    steps = recipe.epochs * per_epoch
    for epoch in range(done, recipe.epochs):
        start = time.perf_counter()
        generator = np.random.default_rng((seed, epoch))
        seen = EpochImages.drawn(lessons, recipe, generator, np.random.default_rng((seed, epoch, 1)))
        shares = [seen.order[batch][rank::world_size] for batch in batches]
        execution.train(parallel)
        total, count = 0.0, 0
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(generator.integers(2**63)))  # for archs that drop units or patches
            # The next batch is read and copied while this one is computed.
            for step, batch in enumerate(ahead(seen.read, shares)):
                rate = scheduled(epoch * per_epoch + step, steps, recipe.learning_rate, recipe.warmup)
                summed = partial(_summed_loss, execution, parallel, heads, arch, batch)
                # Workers' gradients are averaged: the sum over all images, divided by the global batch.
                scale = world_size / (batches[step].stop - batches[step].start)
                loss = execution.backward(parallel, optimizer, summed, batch.size, scale)
                where = f"{name}: epoch {epoch + 1}, step {step + 1}"
                take_step(optimizer, loss, rate, recipe.gradient_clip, where)
                total += loss / scale
                count += batch.size
        seconds = time.perf_counter() - start
        reached = [
            _val_accuracy(tower, lesson, arch, device, f"{name}: epoch {epoch + 1}") for lesson in lessons
        ]

        def save(finished: int = epoch + 1) -> Checkpoint:
            return {
                "epoch": finished,
                "tower": to_cpu(tower.state_dict()),
                "optimizer": to_cpu(optimizer.state_dict()),
            }

        yield Epoch(
            index=epoch + 1,
            epochs=recipe.epochs,
            loss=total / count,
            val_accuracy=sum(reached) / len(reached),
            seconds=seconds,
            images_per_second=batches[-1].stop / seconds,
            checkpoint=save,
        )


def _batches(images: int, batch_size: int, least: int) -> list[slice]:
    """An epoch's batches; a last, smaller one only of `least` images or more."""
    starts = range(0, images, batch_size)
    found = [slice(at, min(at + batch_size, images)) for at in starts]
    return found if found[-1].stop - found[-1].start >= least else found[:-1]


def _summed_loss(
    execution: Execution, module: nn.Module, heads: Sequence[Tensor], arch: Arch, batch: Batch, rows: slice
) -> Tensor:
    """The cross-entropy of some rows of a batch, summed; images become pixels on the device."""
    device, parts = execution.device, batch.cut(rows)
    pixels = []
    for part in parts:
        images = augmented(execution.recipe, part.images.to(device), part.moves, image_size(arch))
        pixels.append(preprocess(images, arch, device))
    z = execution.forward(module, pixels[0] if len(pixels) == 1 else torch.cat(pixels)).float()
    losses = [
        cross_entropy(head_logits(own, heads[part.lesson]), part.labels.to(device), reduction="sum")
        for part, own in zip(parts, torch.split(z, [len(part.labels) for part in parts]), strict=True)
    ]
    return torch.stack(losses).sum()


def _val_accuracy(tower: nn.Module, lesson: Lesson, arch: Arch, device: torch.device, where: str) -> float:
    """Percent, on all val images of a lesson; raises TrainingDiverged for embeddings that are not finite."""
    embeddings = torch.from_numpy(embed(tower, lesson.val.images, arch, device=device))
    if not embeddings.isfinite().all():
        raise TrainingDiverged(f"{where}: embeddings of val are NaN or infinite")
    return accuracy(embeddings, lesson.head.cpu(), torch.from_numpy(lesson.val.labels))
