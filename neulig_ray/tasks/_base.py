"""What a task is, and the decorator that a task's file uses to declare one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from neulig_ray.errors import InputError
from neulig_ray.registry import Registry

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Images uint8 (N, H, W, 3) in RGB, and labels int64 (N,), indices into the task's class names."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


Loader = Callable[[int], Mapping[str, Split]]
Captioned = Callable[[int, int], tuple[np.ndarray, list[str]]]


@dataclass(frozen=True)
class Task:
    """A labelled image data set. `load(seed)` gives its splits, a function of the seed alone.

    `pretraining(seed, count)`, where there is one, gives `count` captioned images in another style than
    the task's own (as the web is to a benchmark): uint8 (count, H, W, 3) and their captions.
    """

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    load: Loader
    source: str
    version: int = 1
    pretraining: Captioned | None = field(default=None)

    def splits(self, seed: int) -> dict[str, Split]:
        """The checked train, val and test splits; raises InputError for one that cannot be used."""
        splits = dict(self.load(seed))
        if missing := [name for name in SPLITS if name not in splits]:
            raise InputError(f"task {self.name!r} gives no {' and no '.join(missing)} split")
        for name, split in splits.items():
            where = f"task {self.name!r}, split {name!r}"
            if len(split) == 0:
                raise InputError(f"{where} is empty")
            if split.images.dtype != np.uint8 or split.images.ndim != 4 or split.images.shape[-1] != 3:
                raise InputError(
                    f"{where}: images must be uint8 (N, H, W, 3), not {split.images.dtype} "
                    f"{split.images.shape}"
                )
            if len(split.images) != len(split.labels):
                raise InputError(f"{where}: {len(split.images)} images but {len(split.labels)} labels")
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= len(self.class_names):
                raise InputError(
                    f"{where}: labels run from {low} to {high}, but the class list has "
                    f"{len(self.class_names)} names"
                )
        return splits


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
        return TASKS.register(name, made, module=load.__module__)

    return declare
