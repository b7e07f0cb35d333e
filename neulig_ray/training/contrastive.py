"""Pre-training: a tiny CLIP learns from captioned images, contrastively."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neulig_ray.errors import InputError, TrainingDiverged
from neulig_ray.models.archs import Arch, PretrainRecipe
from neulig_ray.models.clip import embed, preprocess, tokenize
from neulig_ray.tasks import Task
from neulig_ray.training.optimisation import adamw, scheduled, take_step, to_cpu

Checkpoint = dict[str, Any]
CHUNK = 100  # steps between two reports
NORM_IMAGES = 2048  # images over which the mean norm of the embeddings is taken
MAX_LOGIT_SCALE = 100.0  # CLIP's bound


@dataclass(frozen=True)
class Chunk:
    """What is known after some steps. `checkpoint` copies to the CPU when it is called."""

    step: int  # steps finished
    steps: int
    loss: float  # mean over this worker's images since the last chunk
    accuracy: float  # percent of these images whose own caption came first
    seconds: float
    images_per_second: float  # of all workers
    checkpoint: Callable[[], Checkpoint]


def pretraining_stream(tasks: Iterable[Task], seed: int, count: int) -> tuple[np.ndarray, list[str]]:
    """`count` captioned images, an equal share from each task that has a pre-training stream.

    Raises InputError when none has, or when the images differ in size.
    """
    sources = [task for task in tasks if task.pretraining is not None]
    if not sources:
        raise InputError("none of the tasks has a pre-training stream: add one that has")
    images, captions = [], []
    for i, task in enumerate(sources):
        share = count * (i + 1) // len(sources) - count * i // len(sources)
        assert task.pretraining is not None
        some_images, some_captions = task.pretraining(seed, share)
        images.append(some_images)
        captions.extend(some_captions)
    if len(sizes := {part.shape[1:] for part in images}) > 1:
        raise InputError(f"the tasks' pre-training images differ in size: {sorted(sizes)}")
    return np.concatenate(images), captions


def pretrain(
    clip: Any,
    images: np.ndarray,
    captions: Sequence[str],
    arch: Arch,
    recipe: PretrainRecipe,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    checkpoint: Checkpoint | None = None,
    name: str = "",
) -> Iterator[Chunk]:
    """Train `clip` in place on images uint8 (N, H, W, 3) and their captions; yields every 100 steps.

    The contrastive loss of CLIP from the image's side: each image's caption is found among
    `recipe.candidates` distinct captions, those of the batch and others drawn at random. Equal captions of
    a batch are one candidate, so that no image is its twin's negative. Seeding, resuming, workers and
    errors as in `finetune`. After the last step the visual tower's output projection is multiplied by one
    constant that gives the embeddings `recipe.embedding_norm` as their mean norm: heads normalise, so
    accuracies do not change.
    """
    device = torch.device(device)
    batch_size = min(recipe.batch_size, len(images))
    if batch_size // world_size < 2:
        raise InputError(
            f"{name}: batches of {batch_size} images cannot be shared by {world_size} workers; "
            "use fewer workers or a larger batch_size"
        )
    clip.to(device)
    done = 0
    if checkpoint is not None:
        clip.load_state_dict(checkpoint["clip"], strict=False)
        done = int(checkpoint["step"])
    parallel = wrap(clip)
    optimizer = adamw(clip, recipe.learning_rate, recipe.weight_decay)
    if checkpoint is not None:
        optimizer.load_state_dict(checkpoint["optimizer"])

    distinct, concepts = np.unique(np.asarray(captions), return_inverse=True)
    tokens = tokenize(distinct.tolist(), arch)
    start, losses, hits, seen = time.perf_counter(), 0.0, 0, 0
    for step in range(done, recipe.steps):
        parallel.train()
        generator = np.random.default_rng((seed, step))
        index = generator.choice(len(images), batch_size, replace=False)
        candidates = _candidates(np.unique(concepts[index]), len(distinct), recipe.candidates, generator)
        index = index[rank::world_size]
        target = torch.from_numpy(np.searchsorted(candidates, concepts[index])).to(device)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(generator.integers(2**63)))  # for archs that drop units or patches
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                z, t, scale = parallel(preprocess(images[index], arch, device), tokens[candidates].to(device))
        logits = scale * z.float() @ t.float().T
        loss = cross_entropy(logits, target, reduction="sum")
        share = loss * (world_size / batch_size)  # workers' gradients are averaged
        optimizer.zero_grad(set_to_none=True)
        share.backward()  # type: ignore[no-untyped-call]
        take_step(
            optimizer,
            share.item(),
            scheduled(step, recipe.steps, recipe.learning_rate, recipe.warmup),
            recipe.gradient_clip,
            f"{name}: step {step + 1}",
        )
        with torch.no_grad():
            clip.logit_scale.clamp_(max=float(np.log(MAX_LOGIT_SCALE)))
        losses += loss.item()
        hits += int((logits.argmax(1) == target).sum())
        seen += len(index)
        finished = step + 1
        if finished % CHUNK == 0 or finished == recipe.steps:
            seconds = time.perf_counter() - start
            if finished == recipe.steps:
                set_embedding_norm(clip.visual, images, arch, recipe.embedding_norm, device)

            def save(finished: int = finished) -> Checkpoint:
                return {
                    "step": finished,
                    "clip": _trained(clip),
                    "optimizer": to_cpu(optimizer.state_dict()),
                }

            yield Chunk(
                step=finished,
                steps=recipe.steps,
                loss=losses / seen,
                accuracy=100.0 * hits / seen,
                seconds=seconds,
                images_per_second=seen * world_size / seconds,
                checkpoint=save,
            )
            start, losses, hits, seen = time.perf_counter(), 0.0, 0, 0


def _candidates(own: np.ndarray, known: int, wanted: int, generator: np.random.Generator) -> np.ndarray:
    """Sorted indices of captions: the batch's `own`, filled up to `wanted` with others."""
    others = np.setdiff1d(np.arange(known), own)
    more = min(max(0, wanted - len(own)), len(others))
    return np.sort(np.concatenate([own, generator.choice(others, more, replace=False)]))


def _trained(clip: Any) -> dict[str, Tensor]:
    """The state without frozen parameters (the token table), which need no storing."""
    frozen = {name for name, p in clip.named_parameters() if not p.requires_grad}
    return {name: to_cpu(t) for name, t in clip.state_dict().items() if name not in frozen}


@torch.no_grad()
def set_embedding_norm(
    tower: nn.Module, images: np.ndarray, arch: Arch, wanted: float, device: torch.device | str = "cpu"
) -> float:
    """Multiply the tower's output projection so that its embeddings' mean norm is `wanted`; the factor.

    Measured on up to 2048 images, evenly spaced. Raises InputError for a tower without such a projection,
    TrainingDiverged for embeddings that are NaN, infinite or all zero.
    """
    spaced = images[:: max(1, len(images) // NORM_IMAGES)]
    norm = float(np.linalg.norm(embed(tower, spaced, arch, device=device), axis=1).mean())
    if not 0 < norm < np.inf:
        raise TrainingDiverged(f"arch {arch.name!r}: the embeddings' mean norm is {norm}")
    factor = wanted / norm
    for parameter in _output_projection(tower, arch):
        parameter.mul_(factor)
    return factor


def _output_projection(tower: nn.Module, arch: Arch) -> list[nn.Parameter]:
    if isinstance(proj := getattr(tower, "proj", None), nn.Parameter):
        return [proj]
    if isinstance(pool := getattr(tower, "attnpool", None), nn.Module):
        return list(pool.get_submodule("c_proj").parameters())
    raise InputError(f"arch {arch.name!r}: its visual tower has no output projection to rescale")
