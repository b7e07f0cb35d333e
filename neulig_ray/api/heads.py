"""Zero-shot heads from Python: by the names of a task, an arch and an origin."""

import functools
from typing import Any

import torch

from neulig_ray.errors import InputError
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.heads import zero_shot_head
from neulig_ray.stages.origins import load_clip, open_stored
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.inventory import inventory
from neulig_ray.storage.storage import Storage
from neulig_ray.tasks import find_task


@functools.lru_cache(maxsize=256)
def zero_shot(task: str, arch: str, origin: str, storage: str) -> torch.Tensor:
    """The head float32 (C, d) of a task, written by the text tower of an arch's origin.

    Raises InputError for an unknown name, and for an origin that is neither in the storage nor to be had.
    """
    found = find_task(task)
    clip = _clip(arch, origin, storage)
    return zero_shot_head(clip, ARCHS[arch], found.class_names, found.templates)


@functools.lru_cache(maxsize=2)
def _clip(arch: str, origin: str, uri: str) -> Any:
    """The CLIP of an origin: the storage's, where it has one of that name, else as experiments find it."""
    storage = Storage(uri)
    label = f"{arch}.{origin}"
    stored = [
        item
        for item in inventory(storage)
        if item.whole and item.kind == "origin" and item.name.rpartition("-")[0] == label
    ]
    if len(stored) > 1:
        raise InputError(
            f"{storage.uri} has {len(stored)} origins {label}: name the one that is meant by its file, "
            "origin=PATH"
        )
    if stored:
        return load_clip(storage, Artifact("origin", label, stored[0].fingerprint), arch)
    return open_stored(arch, origin, uri)
