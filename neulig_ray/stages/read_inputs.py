"""What ligands and evaluations work on, read from the storage as plain numpy arrays."""

import functools
import resource
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from neulig_ray.cluster.device import device, free_bytes
from neulig_ray.experiment.catalog import ArchModels
from neulig_ray.ligand.data import LigandData
from neulig_ray.merging.parameters import ExpertStack
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import build_tower
from neulig_ray.stages.block_features import load_block_features
from neulig_ray.stages.embeddings import load_embeddings
from neulig_ray.stages.experts import load_expert
from neulig_ray.stages.heads import FILE as HEAD_FILE
from neulig_ray.stages.tasks import load_split, read_array
from neulig_ray.storage.storage import Storage


@dataclass(frozen=True)
class SharedSplit:
    """One split of some tasks as some models see it; `images` only where merged models are to look."""

    embeddings: Mapping[tuple[str, str], np.ndarray]
    labels: Mapping[str, np.ndarray]
    heads: Mapping[str, np.ndarray]
    images: Mapping[str, np.ndarray]
    features: Mapping[tuple[str, str], np.ndarray] = field(default_factory=dict)

    @property
    def data(self) -> LigandData:
        return LigandData(self.embeddings, self.labels, self.heads, self.features)


def read_split(
    storage: Storage, models: ArchModels, split: str, keys: Iterable[str], *, images: bool
) -> SharedSplit:
    """A split of the collaborators' tasks, as these collaborators and the origins see it."""
    known = models.restricted(keys)
    splits = {task: load_split(storage, artifact, split) for task, artifact in known.data.items()}
    return SharedSplit(
        load_embeddings(storage, known.embeddings, split),
        {task: data.labels for task, data in splits.items()},
        {key: read_array(storage, head, HEAD_FILE) for key, head in known.heads.items()},
        {task: data.images for task, data in splits.items()} if images else {},
        load_block_features(storage, known.blocks, split),
    )


def read_stack(storage: Storage, models: ArchModels, keys: Iterable[str]) -> ExpertStack:
    """The experts' parameters side by side."""
    return ExpertStack.from_states(
        {key: load_expert(storage, models.experts[key], models.arch) for key in keys}
    )


def on_device(stack: ExpertStack) -> ExpertStack:
    """The experts where they are mixed: on the job's GPU if they take at most half of its room there.

    On the GPU lie, besides, the bare tower, one merged model and a batch's activations. Where the experts do
    not fit (twenty ViT-L-14 are 24 GB) they are mixed on the CPU, and each merged model is moved.
    """
    where = device()
    needed = sum(vector.nbytes for vector in stack.vectors.values())
    return stack.to(where) if where.type == "cuda" and needed <= free_bytes() / 2 else stack


def peak_bytes() -> int:
    """The most memory that this process has held since it started."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * (1 if sys.platform == "darwin" else 1024)


def collaborators(combinations: Iterable[tuple[str, ...]]) -> list[str]:
    """Everyone who occurs, sorted."""
    return sorted({key for combination in combinations for key in combination})


def load_bare_tower(arch: str) -> nn.Module:
    """The architecture alone, on the job's device: merged models run through it with their own tensors."""
    return _bare_tower(arch).to(device())


@functools.lru_cache(maxsize=2)
def _bare_tower(arch: str) -> nn.Module:
    return build_tower(ARCHS[arch])
