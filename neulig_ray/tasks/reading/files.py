"""Tasks whose images are read from files: what their declarations have in common."""

from pathlib import Path

import numpy as np

from neulig_ray import paths
from neulig_ray.tasks._base import PROTOCOLS, TASKS, Files, Protocol, Split, Task
from neulig_ray.tasks._names import Names, check_list, read_names
from neulig_ray.tasks.reading.encode import DecodeErrors, encode
from neulig_ray.tasks.reading.pictures import Pictures
from neulig_ray.tasks.reading.protocols import divide, official

IN_MEMORY_SIZE = 224


def file_task(
    name: str,
    files: Files,
    *,
    templates: tuple[str, ...],
    source: str,
    paper: bool = False,
    version: int = 1,
) -> Task:
    """A task that reads `files`. `paper`: it has the splits of the paper's protocol.

    Raises InputError for class names that no head can be made of.
    """
    check_list(name, files.names)
    protocols: tuple[Protocol, ...] = PROTOCOLS if paper else ("standard",)

    def load(seed: int) -> dict[str, Split]:
        return {name: _in_memory(made, name, part) for name, part in pictures(made, seed).items()}

    made = Task(name, files.names.spoken, templates, load, source, version, protocols=protocols, files=files)
    return made


def register(task: Task, module: str) -> Task:
    return TASKS.register(task.name, task, module=module)


def names_of(task: str, class_names: Names | tuple[str, ...] | None) -> Names:
    """The names given, or those of the task's file."""
    if class_names is None:
        return read_names(task)
    return class_names if isinstance(class_names, Names) else Names(class_names, class_names)


def fetch(task: Task, seed: int = 0, protocol: Protocol = "standard") -> None:
    """Have a task's files below the data root, downloading what is missing, and see that they can be divided.

    Raises InputError. Nothing is decoded. Drawn tasks have no files.
    """
    if task.files is not None:
        divide(task, protocol, seed, official(task, task.files.read(paths.data_root(), True)))


def pictures(
    task: Task, seed: int, protocol: Protocol = "standard", root: Path | None = None
) -> dict[str, Pictures]:
    """The splits of a protocol, not decoded yet; drawn tasks are drawn. Nothing is downloaded."""
    if task.files is not None:
        found = official(task, task.files.read(root or paths.data_root(), False))
        return divide(task, protocol, seed, found)
    drawn = {
        name: Pictures.of_array(split.images, split.labels, f"{task.name} {name}")
        for name, split in task.splits(seed).items()
    }
    return drawn if protocol == "standard" else divide(task, protocol, seed, drawn)


def stored_size(task: Task, largest: int) -> int | None:
    """The side in pixels that a task's images are fitted to for models of at most `largest` pixels.

    None: as they are, because they are drawn, or of one size whose shorter side is not above `largest`.
    """
    if task.files is None:
        return None
    native = task.files.native
    return None if native is not None and min(native) <= largest else largest


def _in_memory(task: Task, split: str, part: Pictures) -> Split:
    where = f"task {task.name!r}, split {split!r}"
    size = stored_size(task, IN_MEMORY_SIZE)
    blocks = list(encode(part, size, 4096, DecodeErrors(where, len(part))))
    images, labels = zip(*blocks, strict=True)
    return Split(np.concatenate(images), np.concatenate(labels))
