"""Stage `embeddings`: every expert, and every origin, looks once at every split of every task."""

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from neulig_ray.cluster.cost import Cost, Sizes
from neulig_ray.cluster.device import device
from neulig_ray.cluster.jobs import Job, JobOutput
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import build_tower, embed
from neulig_ray.models.work import forward_flops
from neulig_ray.stages.experts import load_expert
from neulig_ray.stages.origins import load_clip
from neulig_ray.stages.tasks import array_bytes, load_split, read_array
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage
from neulig_ray.tasks import SPLITS

VERSION = 1


@dataclass(frozen=True)
class EmbeddingJob(Job):
    """The un-normalised embeddings (N, d) of a task's splits by a model: an expert or an origin."""

    artifact: Artifact
    arch: str
    model: Artifact
    data: Artifact

    @property
    def inputs(self) -> tuple[Artifact, ...]:
        return self.model, self.data

    def cost(self, sizes: Sizes) -> Cost:
        return look_cost(sizes, self.data, self.arch, ARCHS[self.arch].config["embed_dim"])

    def make(self, storage: Storage) -> JobOutput:
        tower = load_tower(storage, self.model, self.arch)
        files = {}
        for split in SPLITS:
            images = load_split(storage, self.data, split).images
            files[f"{split}.npy"] = array_bytes(embed(tower, images, ARCHS[self.arch], device=device()))
        return files, {"arch": self.arch, "model": self.model.label, "data": self.data.label}


def embedding_job(arch: str, model: Artifact, task: str, data: Artifact) -> EmbeddingJob:
    inputs = {"model": model.fingerprint, "data": data.fingerprint}
    artifact = Artifact.of("embedding", f"{model.label}.on.{task}", VERSION, inputs)
    return EmbeddingJob(artifact, arch, model, data)


def look_cost(sizes: Sizes, data: Artifact, arch: str, width: int) -> Cost:
    """Of one look at all images of a task, where `width` float32 numbers of each are kept."""
    found = sizes.of(data)
    if found is None:
        return Cost(unknown=1)
    images = sum(found[split] for split in SPLITS)
    return Cost(images * forward_flops(arch), 4 * images * width)


@functools.lru_cache(maxsize=2)
def load_tower(storage: Storage, model: Artifact, arch: str) -> torch.nn.Module:
    """The visual tower of an expert or an origin; kept in the process: do not train it."""
    if model.kind == "origin":
        return copy.deepcopy(load_clip(storage, model, arch).visual)
    tower = build_tower(ARCHS[arch])
    tower.load_state_dict(load_expert(storage, model, arch))
    return tower


def load_embeddings(
    storage: Storage, artifacts: Mapping[tuple[str, str], Artifact], split: str
) -> dict[tuple[str, str], np.ndarray]:
    """(model key, task) -> float32 (N, d), for one split."""
    return {key: read_array(storage, artifact, f"{split}.npy") for key, artifact in artifacts.items()}
