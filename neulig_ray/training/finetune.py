"""Fine-tuning: a visual tower becomes the expert of one task, under the task's frozen zero-shot head."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neulig_ray.errors import InputError, TrainingDiverged
from neulig_ray.models.archs import Arch, FinetuneRecipe
from neulig_ray.models.clip import embed, image_size, preprocess
from neulig_ray.models.heads import accuracy
from neulig_ray.models.logits import head_logits
from neulig_ray.tasks import Split
from neulig_ray.training.augmentation import augmented, draw
from neulig_ray.training.execution import Execution, ahead
from neulig_ray.training.optimisation import adamw, scheduled, take_step, to_cpu

Checkpoint = dict[str, Any]


@dataclass(frozen=True)
class Epoch:
    """What is known after an epoch. `checkpoint` copies to the CPU when it is called."""

    index: int  # epochs finished: 1..epochs
    epochs: int
    loss: float  # mean over this worker's images
    val_accuracy: float  # percent
    seconds: float
    images_per_second: float  # of all workers
    checkpoint: Callable[[], Checkpoint]


def finetune(
    tower: nn.Module,
    head: Tensor,
    train: Split,
    val: Split,
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
    """Train `tower` in place; its weights after the last epoch are the expert (no selection).

    Order and augmentation of an epoch are a function of (seed, epoch), so that a run resumed from a
    `checkpoint` is bit-identical to an undisturbed one; from the last epoch's, nothing is yielded and
    `tower` holds the expert. Each of `world_size` workers takes every world_size-th image of each global
    batch; `wrap` is where data parallelism goes, and averages gradients. Images left over at the end of an
    epoch wait for the next one, or are a smaller batch where the recipe keeps it. Raises TrainingDiverged,
    naming `name`, epoch and step, and InputError for batches too small to share.
    """
    device = torch.device(device)
    batch_size = min(recipe.batch_size, len(train))
    if batch_size // world_size < 2:
        raise InputError(
            f"{name}: batches of {batch_size} images cannot be shared by {world_size} workers; "
            "use fewer workers or a larger batch_size"
        )
    execution = Execution(recipe, device, world_size)
    execution.prepare(tower)
    head = head.to(device)
    done = 0
    if checkpoint is not None:
        tower.load_state_dict(checkpoint["tower"])
        done = int(checkpoint["epoch"])
    parallel = wrap(execution.compiled(tower))
    optimizer = adamw(tower, recipe.learning_rate, recipe.weight_decay)
    if checkpoint is not None:
        optimizer.load_state_dict(checkpoint["optimizer"])

    batches = _batches(len(train), batch_size, 2 * world_size if recipe.keep_last else batch_size)
    per_epoch = len(batches)
    steps = recipe.epochs * per_epoch
    val_labels = torch.from_numpy(val.labels)
    for epoch in range(done, recipe.epochs):
        start = time.perf_counter()
        generator = np.random.default_rng((seed, epoch))
        order = generator.permutation(len(train))
        moves = draw(recipe, generator, train.images.shape)
        shares = [order[batch][rank::world_size] for batch in batches]
        execution.train(parallel)
        total, seen = 0.0, 0
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(generator.integers(2**63)))  # for archs that drop units or patches
            # The next batch is read and copied while this one is computed.
            for step, batch in enumerate(ahead(partial(_read, train, moves), shares)):
                rate = scheduled(epoch * per_epoch + step, steps, recipe.learning_rate, recipe.warmup)
                summed = partial(_summed_loss, execution, parallel, head, arch, batch)
                # Workers' gradients are averaged: the sum over all images, divided by the global batch.
                scale = world_size / (batches[step].stop - batches[step].start)
                loss = execution.backward(parallel, optimizer, summed, len(batch.labels), scale)
                where = f"{name}: epoch {epoch + 1}, step {step + 1}"
                take_step(optimizer, loss, rate, recipe.gradient_clip, where)
                total += loss / scale
                seen += len(batch.labels)
        seconds = time.perf_counter() - start
        embeddings = torch.from_numpy(embed(tower, val.images, arch, device=device))
        if not embeddings.isfinite().all():
            raise TrainingDiverged(f"{name}: epoch {epoch + 1}: embeddings of val are NaN or infinite")

        def save(finished: int = epoch + 1) -> Checkpoint:
            return {
                "epoch": finished,
                "tower": to_cpu(tower.state_dict()),
                "optimizer": to_cpu(optimizer.state_dict()),
            }

        yield Epoch(
            index=epoch + 1,
            epochs=recipe.epochs,
            loss=total / seen,
            val_accuracy=accuracy(embeddings, head.cpu(), val_labels),
            seconds=seconds,
            images_per_second=batches[-1].stop / seconds,
            checkpoint=save,
        )


def _batches(images: int, batch_size: int, least: int) -> list[slice]:
    """An epoch's batches; a last, smaller one only of `least` images or more."""
    starts = range(0, images, batch_size)
    found = [slice(at, min(at + batch_size, images)) for at in starts]
    return found if found[-1].stop - found[-1].start >= least else found[:-1]


class _Batch(NamedTuple):
    images: Tensor  # uint8 (B, H, W, 3)
    labels: Tensor  # int64 (B,)
    moves: Tensor  # int64 (B, k), the augmentation's


def _read(train: Split, moves: np.ndarray, rows: np.ndarray) -> _Batch:
    images = np.ascontiguousarray(train.images[rows])
    return _Batch(*map(torch.from_numpy, (images, train.labels[rows], moves[rows])))


def _summed_loss(
    execution: Execution, module: nn.Module, head: Tensor, arch: Arch, batch: _Batch, rows: slice
) -> Tensor:
    """The cross-entropy of some rows of a batch, summed; images become pixels on the device."""
    device = execution.device
    images = batch.images[rows].to(device)
    images = augmented(execution.recipe, images, batch.moves[rows], image_size(arch))
    z = execution.forward(module, preprocess(images, arch, device))
    logits = head_logits(z.float(), head)
    return cross_entropy(logits, batch.labels[rows].to(device), reduction="sum")
