"""Stage `embeddings`, where a gate sees the origin's blocks: their features of every split of every task."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from neulig_ray.cluster.cost import Cost, Sizes
from neulig_ray.cluster.device import device
from neulig_ray.cluster.jobs import Job, JobOutput
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.block_features import block_features, block_width
from neulig_ray.stages.embeddings import load_tower, look_cost
from neulig_ray.stages.tasks import array_bytes, load_split, read_array
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage
from neulig_ray.tasks import SPLITS

VERSION = 1


@dataclass(frozen=True)
class BlockFeatureJob(Job):
    """The block features (N, D) of a task's splits by an origin."""

    artifact: Artifact
    arch: str
    origin: Artifact
    data: Artifact

    @property
    def inputs(self) -> tuple[Artifact, ...]:
        return self.origin, self.data

    def cost(self, sizes: Sizes) -> Cost:
        return look_cost(sizes, self.data, self.arch, block_width(self.arch))

    def make(self, storage: Storage) -> JobOutput:
        about = {"arch": self.arch, "origin": self.origin.label, "data": self.data.label}
        return self._files(storage), about

    def _files(self, storage: Storage) -> Iterator[tuple[str, bytes]]:
        """A split at a time: of a large arch an image's features take more room than the image."""
        tower = load_tower(storage, self.origin, self.arch)
        for split in SPLITS:
            images = load_split(storage, self.data, split).images
            yield (
                f"{split}.npy",
                array_bytes(block_features(tower, images, ARCHS[self.arch], device=device())),
            )


def block_feature_job(arch: str, origin: Artifact, task: str, data: Artifact) -> BlockFeatureJob:
    inputs = {"origin": origin.fingerprint, "data": data.fingerprint}
    artifact = Artifact.of("blocks", f"{origin.label}.on.{task}", VERSION, inputs)
    return BlockFeatureJob(artifact, arch, origin, data)


def load_block_features(
    storage: Storage, artifacts: Mapping[tuple[str, str], Artifact], split: str
) -> dict[tuple[str, str], np.ndarray]:
    """(origin name, task) -> float32 (N, D), for one split."""
    return {key: read_array(storage, artifact, f"{split}.npy") for key, artifact in artifacts.items()}
