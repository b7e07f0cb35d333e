"""What runs in every worker of a group: one training after another, until the queue is empty."""

import pickle
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from neulig_ray.cluster.train.job import Step, TrainJob, Worker
from neulig_ray.errors import StageError, TrainingDiverged
from neulig_ray.storage.storage import Storage

CHECKPOINT: Final = "checkpoint.pt"
NOTE: Final = ".job"  # GROUP.job beside a group's folder says which training the group has


@dataclass(frozen=True)
class GroupTask:
    """What a group's workers are told. `left`: training -> folders where killed drivers had it in hand."""

    group: int
    folder: str
    jobs: Mapping[str, TrainJob]
    left: Mapping[str, Sequence[str]]
    storage: Storage
    queue: Any
    threads: int


def work(config: Mapping[str, GroupTask]) -> None:
    """The loop of Ray Train's workers."""
    import ray
    import ray.train
    import ray.train.torch

    from neulig_ray.cluster.device import use_processor

    task = config["task"]
    group, queue, storage = task.group, task.queue, task.storage
    use_processor(task.threads)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    worker = Worker(str(device), rank, world_size, ray.train.torch.prepare_model)
    own = _own_checkpoint()

    while (name := _agree(worker, lambda: _next(task))) is not None:
        job = task.jobs[name]
        resume = own if own and own["job"] == name else _left_checkpoint(task, name, worker)
        own = None  # of the first training only
        if rank == 0:
            storage.write(f"{task.folder}{NOTE}", name.encode())
        try:
            last, curve = _train(task, name, worker, resume)
        except Exception as error:
            # A divergence is seen by every worker at the same step. After anything else the others wait in
            # a collective operation, and only the group's restart frees them.
            if world_size > 1 and not isinstance(error, TrainingDiverged):
                raise
            if rank == 0:
                ray.get(queue.end.remote(group, "failed", name, f"{type(error).__name__}: {error}"))
            continue
        if rank == 0:
            ray.get(queue.end.remote(group, *_commit(storage, job, name, last, curve)))


def _next(task: GroupTask) -> str | None:
    import ray

    while (name := ray.get(task.queue.take.remote(task.group))) is not None:
        if not task.storage.exists(task.jobs[name].artifact):
            return name
        ray.get(task.queue.end.remote(task.group, "done", name, "found in the storage"))
    return None


def _train(
    task: GroupTask, name: str, worker: Worker, resume: dict[str, Any] | None
) -> tuple[Step, list[dict[str, float]]]:
    curve: list[dict[str, float]] = list(resume["curve"]) if resume else []
    step: Step | None = None
    for step in task.jobs[name].steps(task.storage, worker, resume["training"] if resume else None):
        curve.append(dict(step.point))
        if worker.rank == 0:
            task.queue.progress.remote(task.group, name, len(curve), _describe(curve[-1]))
        if not step.final:  # the last step is followed by the artifact itself
            _report({"job": name, "training": step.checkpoint(), "curve": curve}, worker.rank)
    assert step is not None, "a training yields at least its last step"
    return step, curve


def _commit(
    storage: Storage, job: TrainJob, name: str, last: Step, curve: list[dict[str, float]]
) -> tuple[str, str, str]:
    """A storage that takes nothing fails this training, not those that come after it."""
    try:
        files, info = job.files(last, curve)
        storage.commit(job.artifact, files, info)
    except StageError as error:
        return "failed", name, f"{type(error).__name__}: {error}"
    return "done", name, _describe(curve[-1])


def _describe(point: Mapping[str, float]) -> str:
    shown = {key: value for key, value in point.items() if "second" not in key}
    return "  ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in shown.items())


def _report(checkpoint: dict[str, Any], rank: int) -> None:
    import ray.train
    import torch

    with tempfile.TemporaryDirectory() as folder:
        saved = None
        if rank == 0:
            torch.save(checkpoint, Path(folder) / CHECKPOINT)
            saved = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"points": len(checkpoint["curve"])}, checkpoint=saved)


def _own_checkpoint() -> dict[str, Any] | None:
    """Of this group's run before it was restarted."""
    import ray.train
    import torch

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        loaded: dict[str, Any] = torch.load(Path(folder) / CHECKPOINT, weights_only=True)
    return loaded


def _left_checkpoint(task: GroupTask, name: str, worker: Worker) -> dict[str, Any] | None:
    """The furthest that a killed driver's group came with this training."""
    found: dict[str, dict[str, Any]] = {}

    def furthest() -> str | None:
        for folder in task.left.get(name, ()):
            for path in newest_checkpoints(task.storage, folder):
                if (read := _read(task.storage, path)) is not None:
                    if read["job"] == name:
                        found[path] = read
                    break
        return max(found, key=lambda path: len(found[path]["curve"]), default=None)

    path = _agree(worker, furthest)
    if path is None:
        return None
    checkpoint = found.get(path) or _read(task.storage, path)
    if checkpoint is None:  # only this worker could not read it: the group starts again
        raise StageError(f"checkpoint {path} cannot be read")
    return checkpoint


def newest_checkpoints(storage: Storage, folder: str) -> list[str]:
    """Paths within the storage of a group's checkpoints, the newest first: their names hold their time."""
    prefix = len(storage.root) + 1
    paths = [info.path[prefix:] for info in storage.files(folder) if info.base_name == CHECKPOINT]
    return sorted(paths, reverse=True)


def _read(storage: Storage, path: str) -> dict[str, Any] | None:
    """A checkpoint; None for one that its driver's end left half written, or that is gone."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        try:
            storage.download(path, copy := Path(folder) / CHECKPOINT)
            loaded: dict[str, Any] = torch.load(copy, weights_only=True)
        except (OSError, StageError, RuntimeError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError):
            return None
    return loaded


def _agree(worker: Worker, decide: Callable[[], str | None]) -> str | None:
    """Rank 0's decision, in every worker of the group."""
    if worker.world_size == 1:
        return decide()
    import torch.distributed

    box = [decide() if worker.rank == 0 else None]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]
