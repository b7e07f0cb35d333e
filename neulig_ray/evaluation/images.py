"""Images of a task as methods that look at images take them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from neulig_ray.models.archs import Arch
from neulig_ray.models.clip import preprocess
from neulig_ray.seeds import stable_generator


@dataclass(frozen=True)
class TaskImages:
    """uint8 (N, H, W, 3), turned into pixels of the arch, on a device, when they are asked for."""

    images: np.ndarray
    arch: Arch
    device: torch.device | str = "cpu"

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, rows: torch.Tensor) -> torch.Tensor:
        """float32 (len(rows), 3, S, S)."""
        return preprocess(self.images[rows.numpy()], self.arch, self.device)


def mixed_batches(
    images: Mapping[str, np.ndarray],
    arch: Arch,
    batch_size: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> Iterator[torch.Tensor]:
    """Pixels (about batch_size, 3, S, S) of all tasks' images in a seeded order, in batches of even size.

    A batch's pixels are made when it is asked for: all of them, of 20 tasks, would take gigabytes.
    """
    starts = np.cumsum([0, *map(len, images.values())])
    order = stable_generator("unlabelled", seed).permutation(starts[-1])
    for rows in np.array_split(order, -(-len(order) // batch_size)):
        places, parts = [], []
        for part, start in zip(images.values(), starts[:-1], strict=True):
            mine = np.flatnonzero((rows >= start) & (rows < start + len(part)))
            places.append(mine)
            parts.append(preprocess(part[rows[mine] - start], arch, device))
        yield torch.cat(parts)[np.argsort(np.concatenate(places))]
