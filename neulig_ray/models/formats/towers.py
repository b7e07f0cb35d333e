"""Experts in: the visual tower of a foreign checkpoint, as a tower of ours that says where it is from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neulig_ray.errors import InputError
from neulig_ray.models.archs import ARCHS, Arch
from neulig_ray.models.formats.checkpoints import Checkpoint
from neulig_ray.models.formats.huggingface import PATCHES, tower_from
from neulig_ray.models.tower_files import State, check_state, describe, tower_bytes, tower_spec
from neulig_ray.weights.factors import check_factors
from neulig_ray.weights.tensor_file import Spec

FIRST = "conv1.weight"  # the tensor by which an open_clip tower is known: visual.conv1.weight, say


@dataclass(frozen=True)
class Tower:
    """A tower of ours, and what people are told of its import."""

    state: State
    layout: str
    dropped: Mapping[str, Tensor]  # tensors of the checkpoint that are not the tower's
    projection_from_origin: bool


def find_tower(checkpoint: Checkpoint, arch: Arch, projection: Callable[[], Tensor] | None = None) -> Tower:
    """The visual tower in a checkpoint: of transformers, of open_clip, or of a model that holds one of these.

    `projection` gives the origin's `proj` (width, d), which a CLIPVisionModel has not. Raises InputError for
    a checkpoint without a tower, and for one of another arch or activation.
    """
    checkpoint.check(arch)
    tensors, where = checkpoint.tensors, checkpoint.where
    check_factors(where, {name: Spec(tuple(t.shape), t.dtype) for name, t in tensors.items()})
    from_origin = False
    if patches := _towers(tensors, PATCHES, where):
        layout = "transformers"
        state = tower_from(tensors)
        (own,) = patches
        kept = {n for n in tensors if n.startswith(own) or n.endswith("visual_projection.weight")}
        if "proj" not in state:
            if projection is None:
                raise InputError(
                    f"{where} is a CLIPVisionModel, which ends before the projection into the embeddings: "
                    "name the origin whose projection it was fine-tuned under with --origin"
                )
            state["proj"], from_origin = projection(), True
    else:
        starts = _towers(tensors, FIRST, where)
        if not starts:
            names = ", ".join(list(tensors)[:5])
            raise InputError(
                f"{where} holds no visual tower of a CLIP; its tensors are called {names}, ... Name a "
                "checkpoint of a CLIP with a ViT or ModifiedResNet, or of its image encoder"
            )
        (own,) = starts
        layout = f"open_clip ({own}*)" if own else "open_clip's tower"
        state = {name.removeprefix(own): t for name, t in tensors.items() if name.startswith(own)}
        kept = {name for name in tensors if name.startswith(own)}
    try:
        state = check_state(state, tower_spec(arch), where)
    except InputError as error:
        fits = [a.name for a in ARCHS.values() if a.name != arch.name and _fits(state, a)]
        hint = f". Its shapes are those of {' and '.join(fits)}" if fits else ""
        raise InputError(f"{error}{hint}") from None
    dropped = {name: tensor for name, tensor in tensors.items() if name not in kept}
    return Tower(state, layout, dropped, from_origin)


def _towers(tensors: Mapping[str, Tensor], mark: str, where: str) -> list[str]:
    """What stands before the names of the tower that a tensor called `mark` belongs to; [] without one.

    Raises InputError for several towers. What begins with a tower's own prefix is a part of that tower: each
    block of a ResNet has a `conv1.weight` too.
    """
    found: list[str] = []
    for start in sorted((name.removesuffix(mark) for name in tensors if name.endswith(mark)), key=len):
        if not any(start.startswith(other) for other in found):
            found.append(start)
    if len(found) > 1:
        heads = [start.removesuffix("visual.").removesuffix("vision_model.") or start for start in found]
        shown = " and ".join(repr(head.removesuffix(".")) for head in heads)
        raise InputError(f"{where} holds several models, {shown}: choose one with --weights-key KEY")
    return found


def _fits(state: Mapping[str, Tensor], arch: Arch) -> bool:
    spec = tower_spec(arch)
    return spec.keys() == state.keys() and all(tuple(state[n].shape) == spec[n][0] for n in spec)


def expert_bytes(
    tower: Tower, checkpoint: Checkpoint, arch: Arch, *, task: str, origin: str, source: str
) -> bytes:
    """The expert as a tower file: its metadata say what it is and which bytes it was made of."""
    about: dict[str, Any] = {
        "task": task,
        "origin": origin,
        "source": source,
        "source_sha256": checkpoint.sha256,
        "source_layout": tower.layout,
    }
    if tower.projection_from_origin:
        about["projection"] = "the origin's"
    contiguous = {
        name: tensor.to(memory_format=torch.contiguous_format) for name, tensor in tower.state.items()
    }
    return tower_bytes(contiguous, describe(arch, "tower", **about))
