"""Image folders that tests prepare as tasks."""

from pathlib import Path

import data_files
import numpy as np
from PIL import Image

from neulig_ray.stages.tasks import task_job
from neulig_ray.storage.storage import Storage

CLASSES = ("cat", "dog_house", "emu")


def folder(path: Path, **splits: int) -> Path:
    """PATH/<split>/<class>/<number>.png, `count` images of each class; no splits: PATH/<class>/."""
    for split, count in (splits or {"": 10}).items():
        for label, name in enumerate(CLASSES):
            for number in range(count):
                image = Image.new("RGB", (9, 7), (number, label, len(split)))
                data_files.save(path / split / name / f"{number:03d}.png", image)
    return path


def noise(path: Path, size: tuple[int, int], seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    data_files.save(path, Image.fromarray(pixels))


def noisy_folder(path: Path, **splits: int) -> Path:
    """Images of many sizes, all different, 2 classes."""
    for split, count in splits.items():
        for number in range(count):
            seed = number + 1000 * len(split)
            noise(
                path / split / f"c{number % 2}" / f"{number:04d}.png",
                (30 + number % 9, 41 - number % 7),
                seed,
            )
    return path


def made(storage: Storage, entry: str, **settings):
    """A prepared task: its artifact and what its manifest says."""
    job = task_job(entry, 0, **settings)
    job.run(storage)
    return job.artifact, storage.manifest(job.artifact)["info"]
