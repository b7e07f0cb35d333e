"""Stage `tasks`: each task's splits, drawn or read once and kept as plain arrays."""

import functools
import io

import numpy as np

from neulig_ray.stages.artifact import Artifact
from neulig_ray.stages.jobs import Job, Made
from neulig_ray.stages.storage import Storage
from neulig_ray.tasks import TASKS, Split

VERSION = 1


def task_artifact(name: str, seed: int) -> Artifact:
    """The artifact of a task's splits; raises InputError for an unknown task."""
    task = TASKS[name]
    inputs = {
        "task": name,
        "module": TASKS.module(name),
        "task_version": task.version,
        "class_names": task.class_names,
        "seed": seed,
    }
    return Artifact.of("task", f"{name}.s{seed}", VERSION, inputs)


def task_job(name: str, seed: int) -> Job:
    return Job(task_artifact(name, seed), _make, {"name": name, "seed": seed})


def _make(storage: Storage, name: str, seed: int) -> Made:
    files = {}
    sizes = {}
    for split, data in TASKS[name].splits(seed).items():
        files[f"{split}-images.npy"] = array_bytes(data.images)
        files[f"{split}-labels.npy"] = array_bytes(data.labels)
        sizes[split] = len(data)
    return files, {"task": name, "seed": seed, "images": sizes, "source": TASKS[name].source}


def array_bytes(array: np.ndarray) -> bytes:
    """An array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def read_array(storage: Storage, artifact: Artifact, name: str) -> np.ndarray:
    return np.load(io.BytesIO(storage.load(artifact, name)), allow_pickle=False)


@functools.lru_cache(maxsize=24)
def load_split(storage: Storage, artifact: Artifact, split: str) -> Split:
    """One split of a prepared task; kept in the process, since jobs of one worker share tasks."""
    return Split(
        read_array(storage, artifact, f"{split}-images.npy"),
        read_array(storage, artifact, f"{split}-labels.npy"),
    )
