"""What a task is, and the decorator that a task's file uses to declare one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neulig_ray.errors import InputError
from neulig_ray.registry import Registry
from neulig_ray.tasks._names import Names, check_list
from neulig_ray.tasks.reading.pictures import Pictures

SPLITS = ("train", "val", "test")
Protocol = Literal["standard", "paper"]
PROTOCOLS: tuple[Protocol, ...] = ("standard", "paper")


@dataclass(frozen=True)
class Split:
    """Images uint8 (N, H, W, 3) in RGB, and labels int64 (N,), indices into the task's class names.

    `images` of a large split in the storage is not an array but reads like one: len, shape, dtype and
    images[rows] (an index, a slice or an int array), which gives an array of these rows alone.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


Loader = Callable[[int], Mapping[str, Split]]
Captioned = Callable[[int, int], tuple[np.ndarray, list[str]]]


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where a task's images come from when they are not drawn.

    `read(root, download)` gives the official splits: train, test and, where there is one, val. It reads below
    the data root, fetches what is not there if `download`, and raises InputError for what cannot be had.
    """

    read: Callable[[Path, bool], Mapping[str, Pictures]]
    names: Names
    native: tuple[int, int] | None = None
    """Height and width where all images have one size; None where they differ."""
    held_out: int | None = None
    """Protocol `paper`: the val images, where they are not as many as the official test images."""
    num_images: Mapping[str, int] = field(default_factory=dict)
    """Official sizes, as far as they are known before reading."""
    download_mb: int | None = None
    """Megabytes to download, about."""
    identity: Callable[[], Mapping[str, Any]] = dict
    """What the content depends on besides the task's name and version; part of its fingerprint."""
    at_hand: bool = False
    """Whether they were there, and read, when the task was found."""
    most_shared: float = 0.01
    """Fraction of a split's images that may be in another split too; above it the data is refused."""


@dataclass(frozen=True)
class Task:
    """A labelled image data set. `load(seed)` gives its splits, a function of the seed alone.

    `pretraining(seed, count)`, where there is one, gives `count` captioned images in another style than
    the task's own (as the web is to a benchmark): uint8 (count, H, W, 3) and their captions.
    `files`: of a data set that is read from files, which are then what `load` reads too.
    """

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    load: Loader
    source: str
    version: int = 1
    pretraining: Captioned | None = field(default=None)
    protocols: tuple[Protocol, ...] = PROTOCOLS
    files: Files | None = None

    def splits(self, seed: int) -> dict[str, Split]:
        """The checked train, val and test splits; raises InputError for one that cannot be used."""
        splits = dict(self.load(seed))
        if missing := [name for name in SPLITS if name not in splits]:
            raise InputError(f"task {self.name!r} gives no {' and no '.join(missing)} split")
        for name, split in splits.items():
            where = f"task {self.name!r}, split {name!r}"
            if len(split) and (
                split.images.dtype != np.uint8 or split.images.ndim != 4 or split.images.shape[-1] != 3
            ):
                raise InputError(
                    f"{where}: images must be uint8 (N, H, W, 3), not {split.images.dtype} "
                    f"{split.images.shape}"
                )
            if len(split.images) != len(split.labels):
                raise InputError(f"{where}: {len(split.images)} images but {len(split.labels)} labels")
            self.check_labels(split.labels, name)
        return splits

    def check_labels(self, labels: np.ndarray, split: str) -> None:
        """Raises InputError for labels that are none, or that the class list has no name for."""
        where = f"task {self.name!r}, split {split!r}"
        if len(labels) == 0:
            raise InputError(f"{where} is empty")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= len(self.class_names):
            raise InputError(
                f"{where}: labels run from {low} to {high}, but the class list has "
                f"{len(self.class_names)} names"
            )


TASKS: Registry[Task] = Registry("task", "neulig_ray.tasks")


def task(
    name: str,
    *,
    class_names: tuple[str, ...],
    templates: tuple[str, ...] = ("a photo of a {}.",),
    source: str,
    version: int = 1,
    pretraining: Captioned | None = None,
) -> Callable[[Loader], Task]:
    """Declare a function of the seed as the task `name`. `templates` hold one `{}` for the class name.

    Raise `version` whenever the images or the splits change: stored artifacts are made anew.
    """

    def declare(load: Loader) -> Task:
        made = Task(name, class_names, templates, load, source, version, pretraining)
        TASKS.register(name, made, module=load.__module__)
        check_list(name, Names(class_names, class_names))
        return made

    return declare
