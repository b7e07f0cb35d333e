"""Experts of a few hundred parameters, with BatchNorm, and the embeddings that they really give."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from neulig_ray.evaluation.forward import embed_with
from neulig_ray.ligand.data import LigandData, task_of
from neulig_ray.models.archs import Arch

DIM = 6
ARCH = Arch(
    name="small-test", description="8 x 8 images", config={"embed_dim": DIM, "vision_cfg": {"image_size": 8}}
)
CLASSES = {"a": 3, "b": 5, "c": 2}
SIZES = {"a": 37, "b": 60, "c": 45}
KEYS = ("a@seed-0", "b@seed-0", "c@seed-1")


class SmallTower(nn.Module):
    """Convolution, BatchNorm, ReLU, projection: what merging has to get right, and nothing more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.bn = nn.BatchNorm2d(4)
        self.proj = nn.Linear(4 * 9, DIM)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.proj(self.bn(self.conv(images)).relu().flatten(1))


def make_tower(seed: int) -> SmallTower:
    """Random weights and BatchNorm statistics, three training batches counted."""
    torch.manual_seed(seed)
    tower = SmallTower()
    tower.train()
    for _ in range(3 + seed):
        tower(torch.randn(16, 3, 8, 8) * (1 + seed) + seed)
    return tower.eval()


def make_states(keys: tuple[str, ...] = KEYS) -> dict[str, dict[str, torch.Tensor]]:
    return {key: make_tower(seed).state_dict() for seed, key in enumerate(keys)}


def make_images(split: str, sizes: Mapping[str, int] = SIZES) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(len(split))
    return {t: rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8) for t, n in sizes.items()}


def make_data(split: str, states: Mapping[str, Mapping[str, torch.Tensor]]) -> LigandData:
    """What the experts `states` see in `make_images(split)`, with random labels and heads; read-only."""
    rng = np.random.default_rng(7 + len(split))
    images = make_images(split)
    embeddings = {
        (key, task): embed_with(SmallTower(), state, images[task], ARCH).numpy()
        for key, state in states.items()
        for task in images
    }
    labels = {task: rng.integers(0, CLASSES[task], len(images[task])) for task in images}
    heads_rng = np.random.default_rng(3)
    heads = {
        key: (5 * heads_rng.standard_normal((CLASSES[task_of(key)], DIM))).astype(np.float32)
        for key in states
    }
    for arrays in (embeddings, labels, heads, images):
        for array in arrays.values():
            array.flags.writeable = False
    return LigandData(embeddings, labels, heads)
