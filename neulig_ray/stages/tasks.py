"""Stage `tasks`: each task's splits, drawn or decoded once and kept as plain uint8 arrays in shards."""

import functools
import hashlib
import io
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.markup import escape

from neulig_ray import paths
from neulig_ray.cluster.cost import Cost, Sizes
from neulig_ray.cluster.jobs import Job, JobOutput, Needs, Resources, run_jobs
from neulig_ray.cluster.run_context import RunContext
from neulig_ray.errors import InputError, StageError
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.sharded_images import SHARD_BYTES, StoredImages
from neulig_ray.storage.storage import Storage
from neulig_ray.tasks import TASKS, Protocol, Split, Task, find_task
from neulig_ray.tasks.reading.encode import DECODING, Crops, DecodeErrors, encode
from neulig_ray.tasks.reading.files import fetch, pictures, stored_size
from neulig_ray.tasks.reading.protocols import split_sizes

VERSION = 2  # 2: images in shards
MOST_THREADS = 8
_WIDEST = 224  # pixels: of tasks prepared for no arch in particular


def task_artifact(
    entry: str,
    seed: int,
    protocol: Protocol = "standard",
    *,
    size: int = _WIDEST,
    views: int = 1,
    task: Task | None = None,
) -> Artifact:
    """The artifact of a task's splits; raises InputError for an unknown task or a protocol it has not.

    `size`: pixels on a side of the largest images that a model of the experiment takes. `views`: how often
    protocol `paper` shows each test image through the training transform; 0: the evaluation transform.
    """
    task = task or find_task(entry)
    check_protocol(task, protocol)
    inputs: dict[str, Any] = {
        "task": task.name,
        "module": TASKS.module(task.name) if task.name in TASKS else None,
        "task_version": task.version,
        "class_names": task.class_names,
        "seed": seed,
    }
    if task.files is not None:
        inputs |= {"size": stored_size(task, size), "decoding": DECODING, **task.files.identity()}
    if protocol != "standard":
        inputs |= {"protocol": protocol, "views": views, "view_size": size}
    label = f"{task.name}.s{seed}" + ("" if protocol == "standard" else f".{protocol}")
    return Artifact.of("task", label, VERSION, inputs)


def check_protocol(task: Task, protocol: Protocol) -> None:
    """Raises InputError, naming the tasks that could be used, for a task without splits of the protocol."""
    if protocol not in task.protocols:
        able = [t.name for t in TASKS.values() if protocol in t.protocols]
        raise InputError(
            f"task {task.name!r} has no splits of protocol {protocol!r}: use protocol standard, or some of "
            f"{', '.join(able)}"
        )


@dataclass(frozen=True)
class TaskJob(Job):
    """Prepares a task. One that reads files runs on the driver's node, where they lie below its data root.

    `size`: pixels on a side of the largest images that a model of the experiment takes.
    """

    artifact: Artifact
    entry: str
    seed: int
    protocol: Protocol
    size: int
    views: int
    root: str
    from_files: bool

    @property
    def needs(self) -> Needs:
        return Needs(gpu=False, on_driver=self.from_files)

    def prepare(self, context: RunContext) -> None:
        """Have the files on this node, downloading what is missing; raises InputError."""
        if self.from_files and not context.storage.exists(self.artifact):
            place = escape(f"{self.entry} (data root {paths.data_root()})")
            context.reporter.say(f"[bold]{'data':<12}[/] {place}")
            fetch(find_task(self.entry), self.seed, self.protocol)

    def split_sizes(self) -> dict[str, int] | None:
        """Images of each split, as it will be stored; None for drawn tasks, and where nothing says it."""
        return split_sizes(find_task(self.entry), self.protocol, self.views)

    def cost(self, sizes: Sizes) -> Cost:
        found = sizes.of(self.artifact)
        if found is None:
            return Cost(unknown=1)
        task = find_task(self.entry)
        side = stored_size(task, self.size)
        native = math.prod((task.files and task.files.native) or (self.size, self.size))
        shown = self.size if self.protocol == "paper" and self.views else side
        pixels = {"train": side, "val": side, "test": shown}
        return Cost(
            bytes=sum(
                3 * found[split] * (width * width if width else native) for split, width in pixels.items()
            )
        )

    def make(self, storage: Storage) -> JobOutput:
        task = find_task(self.entry)
        info: dict[str, Any] = {
            "task": task.name,
            "entry": self.entry,
            "seed": self.seed,
            "protocol": self.protocol,
            "source": task.source,
            "images": {},
            "shards": {},
            "notes": [],
        }
        crops = Crops(task.name, self.size, self.views) if self.protocol == "paper" and self.views else None
        size = stored_size(task, self.size)
        return _files(task, self.seed, self.protocol, size, crops, Path(self.root), info), info


def task_job(
    entry: str,
    seed: int,
    protocol: Protocol = "standard",
    *,
    size: int = _WIDEST,
    views: int = 1,
    task: Task | None = None,
) -> TaskJob:
    """The job that prepares a task; its arguments are those of `task_artifact`, which raises InputError.

    So does this where files that are at hand cannot be divided, so that each split has each class.
    """
    task = task or find_task(entry)
    artifact = task_artifact(entry, seed, protocol, size=size, views=views, task=task)
    if task.files is not None and task.files.at_hand:
        pictures(task, seed, protocol)
    root = str(paths.data_root())
    return TaskJob(artifact, entry, seed, protocol, size, views, root, task.files is not None)


def run(context: RunContext, jobs: Sequence[TaskJob], resources: Resources) -> None:
    """Prepare the tasks; raises StageError when one of them fails, since nothing can be had without data."""
    run_jobs("tasks", jobs, context, resources)
    if any(job.artifact.fingerprint in context.failures for job in jobs):
        raise StageError("; ".join(context.failures.values()))
    for job in jobs:
        for note in context.storage.manifest(job.artifact)["info"]["notes"]:
            context.reporter.say(f"[bold]{'tasks':<12}[/] {job.artifact.label}: {escape(note)}")


def _files(
    task: Task,
    seed: int,
    protocol: Protocol,
    size: int | None,
    crops: Crops | None,
    root: Path,
    info: dict[str, Any],
) -> Iterator[tuple[str, bytes]]:
    """Each file when it is made, so that a shard at a time is in memory; `info` is whole after the last."""
    threads = min(MOST_THREADS, os.cpu_count() or 1)
    seen: dict[str, set[bytes]] = {}
    parts = pictures(task, seed, protocol, root)
    info["notes"] += dict.fromkeys(note for part in parts.values() for note in part.notes)
    for split, part in parts.items():
        damaged = DecodeErrors(f"task {task.name!r}, split {split!r}", len(part))
        names: list[str] = []
        labels: list[np.ndarray] = []
        seen[split] = set()
        shown = crops if split == "test" else None
        per_shard = max(1, SHARD_BYTES // _image_bytes(task, part, shown.size if shown else size))
        for images, found in encode(part, size, per_shard, damaged, shown, threads):
            names.append(f"{split}-images-{len(names):04d}.npy")
            labels.append(found)
            if task.files is not None:
                seen[split].update(hashlib.blake2b(image, digest_size=12).digest() for image in images)
            yield names[-1], array_bytes(images)
        stored = np.concatenate(labels)
        yield f"{split}-labels.npy", array_bytes(stored)
        info["images"][split] = sum(map(len, labels))
        info["shards"][split] = names
        if damaged.names:
            info["notes"].append(
                f"{split}: {len(damaged.names)} of {len(part)} images cannot be used and are left out: "
                + "; ".join(damaged.names[:5])
            )
            if gone := set(part.labels.tolist()) - set(stored.tolist()):
                lost = ", ".join(repr(task.class_names[label]) for label in sorted(gone)[:5])
                info["notes"].append(f"{split}: no image is left of {lost}")
    if shown := crops:
        info["notes"].append(
            f"test: half of the images that were not held out of the official training split, {shown.views} "
            "times each through the training transform (a random crop of at least 90 % of the area)"
        )
    if task.files is not None:
        info["notes"] += _shared(task, seen)


def _image_bytes(task: Task, part: Any, size: int | None) -> int:
    if size is not None:
        return size * size * 3
    if task.files is not None and task.files.native is not None:
        height, width = task.files.native  # its first image may be damaged
    else:
        width, height = part.read(0).size
    return height * width * 3


def _shared(task: Task, seen: dict[str, set[bytes]]) -> list[str]:
    """A line for each two splits that have images in common.

    Raises InputError where that is more than a task's limit: a few images more or less do not move an
    accuracy, but a split copied into another does, as it did with DTD in one family of published experts.
    """
    assert task.files is not None
    notes = []
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        common = len(seen[one] & seen[other])
        if common > task.files.most_shared * min(len(seen[one]), len(seen[other])):
            raise InputError(
                f"task {task.name!r}: {common} of the {len(seen[other])} images of {other} are in {one} too, "
                f"more than {task.files.most_shared:.0%}: accuracies on {other} would be too high. Take them "
                f"out of {one}, or fetch the data set again ({task.source})"
            )
        if common:
            notes.append(f"{common} images are both in {one} and in {other}")
    return notes


def array_bytes(array: np.ndarray) -> bytes:
    """An array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def read_array(storage: Storage, artifact: Artifact, name: str) -> np.ndarray:
    return np.load(io.BytesIO(storage.load(artifact, name)), allow_pickle=False)


@functools.lru_cache(maxsize=24)
def load_split(storage: Storage, artifact: Artifact, split: str) -> Split:
    """One split of a prepared task; kept in the process, since jobs of one worker share tasks.

    Images of one shard are an array in memory. More are mapped from the node's disk, and only the rows that
    are asked for are read.
    """
    shards = storage.manifest(artifact)["info"]["shards"][split]
    labels = read_array(storage, artifact, f"{split}-labels.npy")
    if len(shards) == 1:
        return Split(read_array(storage, artifact, shards[0]), labels)
    return Split(cast("np.ndarray", StoredImages(storage, artifact, tuple(shards))), labels)
