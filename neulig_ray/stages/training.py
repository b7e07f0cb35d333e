"""Trainings on Ray Train: worker groups that take one training after another from a queue.

A Train run costs 10 s and more before its first step, so small trainings share one. Each is still its own
artifact, its own seed and its own failure; a lost worker, node or driver costs at most the epoch in hand.
"""

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from neulig_ray.errors import TrainingDiverged
from neulig_ray.stages.artifact import Artifact, fingerprint
from neulig_ray.stages.cluster import Cluster
from neulig_ray.stages.jobs import Failures, Made, Resources, ensure, runnable
from neulig_ray.stages.progress import Reporter, Stage
from neulig_ray.stages.storage import Storage


@dataclass(frozen=True)
class Worker:
    """What a training loop needs to know of the worker that it runs in: its keywords of these names."""

    device: str = "cpu"
    rank: int = 0
    world_size: int = 1
    wrap: Callable[[Any], Any] = lambda module: module


@dataclass(frozen=True)
class Step:
    """A point of a training's curve, and how to go on from there."""

    final: bool
    point: Mapping[str, float]
    checkpoint: Callable[[], dict[str, Any]]
    model: Any


class TrainJob(Protocol):
    """One training: a picklable description that makes `artifact`."""

    @property
    def artifact(self) -> Artifact: ...
    @property
    def inputs(self) -> tuple[Artifact, ...]: ...
    def steps(
        self, storage: Storage, worker: Worker, checkpoint: dict[str, Any] | None
    ) -> Iterator[Step]: ...
    def files(self, last: Step, curve: list[dict[str, float]]) -> Made: ...


def run_trainings(
    name: str,
    jobs: Sequence[TrainJob],
    storage: Storage,
    cluster: Cluster,
    resources: Resources,
    workers: int,
    max_groups: int | None,
    reporter: Reporter,
    failures: Failures,
) -> None:
    """Make what is missing of `jobs`, adding to `failures` what could not be made."""
    jobs = runnable(jobs, failures)
    cached = sum(storage.exists(job.artifact) for job in jobs)
    with reporter.stage(name, len(jobs), cached) as stage:
        if cached == len(jobs):
            return
        cluster.start()
        need = {"cpus": workers * resources.cpus, "gpus": workers * resources.gpus}
        groups = min(cluster.slots(**need), max_groups or len(jobs))
        # Named after the whole plan, not what is missing of it: the same command finds its checkpoints.
        run = f"{name}-{fingerprint([job.artifact.fingerprint for job in jobs])}"

        def make(missing: list[TrainJob]) -> Failures:
            return _Groups(run, missing, storage, resources, workers, stage).run(min(groups, len(missing)))

        failures.update(ensure(storage, jobs, make))
        if not failures:
            storage.delete_tree(f"ray/train/{run}")


class _Queue:
    """An actor: which group has which training. A group that restarts gets back what it had.

    `interrupted`: group -> the training that it had when an earlier driver was killed. Its checkpoint is that
    group's, and so it is kept for that group, whichever comes first.
    """

    def __init__(self, fingerprints: list[str], interrupted: Mapping[int, str]) -> None:
        self._waiting = list(fingerprints)
        self._interrupted = dict(interrupted)
        self._taken: dict[int, str] = {}
        self._events: list[tuple[str, str, str]] = []

    def take(self, group: int) -> str | None:
        if group in self._taken:
            return self._taken[group]
        own = self._interrupted.pop(group, None)
        others = set(self._interrupted.values())
        free = [own] if own in self._waiting else [name for name in self._waiting if name not in others]
        if not free:
            return None
        self._waiting.remove(free[0])
        self._taken[group] = free[0]
        return free[0]

    def post(self, group: int, event: str, fingerprint: str, text: str) -> None:
        if event != "running":
            self._taken.pop(group, None)
        self._events.append((event, fingerprint, text))

    def drop(self, group: int) -> str | None:
        return self._taken.pop(group, None)

    def events(self) -> list[tuple[str, str, str]]:
        events, self._events = self._events, []
        return events


class _Groups:
    """The driver's side: one Train run for each group, in a thread of its own."""

    def __init__(
        self,
        run: str,
        jobs: list[TrainJob],
        storage: Storage,
        resources: Resources,
        workers: int,
        stage: Stage,
    ) -> None:
        self._run = run
        self._jobs = {job.artifact.fingerprint: job for job in jobs}
        self._storage = storage
        self._resources = resources
        self._workers = workers
        self._stage = stage
        self._queue: Any = None
        self.failures: Failures = {}

    def run(self, groups: int) -> Failures:
        import ray

        self._queue = ray.remote(num_cpus=0)(_Queue).remote(list(self._jobs), self._interrupted(groups))
        finished = threading.Event()
        pool = ThreadPoolExecutor(groups + 1)
        follower = pool.submit(self._follow, finished)
        try:
            for future in [pool.submit(self._fit, group) for group in range(groups)]:
                future.result()
        finally:
            finished.set()
            pool.shutdown(wait=False)  # an interrupt does not wait for trainings: they go on from checkpoints
        follower.result()
        return self.failures

    def _interrupted(self, groups: int) -> dict[int, str]:
        found = {}
        for group in range(groups):
            with contextlib.suppress(FileNotFoundError):
                found[group] = self._storage.read(_note(self._run, group)).decode()
        return found

    def _fit(self, group: int) -> None:
        import ray.train
        from ray.train.torch import TorchTrainer

        r = self._resources
        while True:
            trainer = TorchTrainer(
                _work,
                train_loop_config={
                    "group": group,
                    "note": _note(self._run, group),
                    "jobs": self._jobs,
                    "storage": self._storage,
                    "queue": self._queue,
                    "threads": r.cpus,
                },
                scaling_config=ray.train.ScalingConfig(
                    num_workers=self._workers,
                    use_gpu=r.gpus > 0,
                    resources_per_worker={"CPU": r.cpus, **({"GPU": r.gpus} if r.gpus else {})},
                ),
                run_config=ray.train.RunConfig(
                    name=f"group-{group}",
                    storage_path=self._storage.child_uri(f"ray/train/{self._run}"),
                    failure_config=ray.train.FailureConfig(max_failures=r.max_failures),
                    checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
                ),
            )
            try:
                trainer.fit()
                return
            except Exception as error:
                broken = ray.get(self._queue.drop.remote(group))
                if broken is None:
                    raise
                reason = f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
                self._fail(broken, f"{reason} (tried {r.max_failures + 1} times)")

    def _fail(self, broken: str, reason: str) -> None:
        self.failures[broken] = reason
        self._stage.finished(self._jobs[broken].artifact.label, reason, failed=True)

    def _follow(self, finished: threading.Event) -> None:
        import ray

        last = False
        while not last:
            last = finished.is_set()
            for event, broken, text in ray.get(self._queue.events.remote()):
                label = self._jobs[broken].artifact.label
                if event == "running":
                    self._stage.running(label, text)
                elif event == "failed":
                    self._fail(broken, text)
                else:
                    self._stage.finished(label, text)
            time.sleep(0.0 if last else 0.3)


def _note(run: str, group: int) -> str:
    """Where a group writes down which training it has, for the driver that comes after a killed one."""
    return f"ray/train/{run}/group-{group}.job"


def _work(config: Mapping[str, Any]) -> None:
    """The loop in every worker of a group: train what the queue gives until it is empty."""
    import ray
    import ray.train
    import ray.train.torch
    import torch

    torch.set_num_threads(config["threads"])
    torch.set_flush_denormal(True)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    worker = Worker(str(device), rank, world_size, ray.train.torch.prepare_model)
    group, queue, storage = config["group"], config["queue"], config["storage"]
    resume = _load_checkpoint()

    while (
        name := _agree(rank, world_size, lambda: _next(queue, group, storage, config["jobs"]))
    ) is not None:
        job = config["jobs"][name]
        mine = resume if resume and resume["job"] == name else None
        if rank == 0:
            storage.write(config["note"], name.encode())
        try:
            last, curve = _train(job, storage, worker, mine, queue, group)
        except Exception as error:
            # A divergence is seen by every worker at the same step. After anything else the others wait in
            # a collective operation, and only the group's restart frees them.
            if world_size > 1 and not isinstance(error, TrainingDiverged):
                raise
            if rank == 0:
                queue.post.remote(group, "failed", name, f"{type(error).__name__}: {error}")
            continue
        if rank == 0:
            files, info = job.files(last, curve)
            storage.commit(job.artifact, files, info)
            ray.get(queue.post.remote(group, "done", name, _describe(curve[-1])))


def _next(queue: Any, group: int, storage: Storage, jobs: Mapping[str, TrainJob]) -> str | None:
    import ray

    while (name := ray.get(queue.take.remote(group))) is not None:
        if not storage.exists(jobs[name].artifact):
            return name
        ray.get(queue.post.remote(group, "done", name, "found in the storage"))
    return None


def _train(
    job: TrainJob, storage: Storage, worker: Worker, resume: dict[str, Any] | None, queue: Any, group: int
) -> tuple[Step, list[dict[str, float]]]:
    name = job.artifact.fingerprint
    curve: list[dict[str, float]] = list(resume["curve"]) if resume else []
    step: Step | None = None
    for step in job.steps(storage, worker, resume["training"] if resume else None):
        curve.append(dict(step.point))
        if worker.rank == 0:
            queue.post.remote(group, "running", name, _describe(curve[-1]))
        if not step.final:  # the last step is followed by the artifact itself
            _report({"job": name, "training": step.checkpoint(), "curve": curve}, worker.rank)
    assert step is not None, "a training yields at least its last step"
    return step, curve


def _describe(point: Mapping[str, float]) -> str:
    shown = {key: value for key, value in point.items() if "second" not in key}
    return "  ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in shown.items())


def _report(checkpoint: dict[str, Any], rank: int) -> None:
    import ray.train
    import torch

    with tempfile.TemporaryDirectory() as folder:
        saved = None
        if rank == 0:
            torch.save(checkpoint, Path(folder) / "checkpoint.pt")
            saved = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"points": len(checkpoint["curve"])}, checkpoint=saved)


def _load_checkpoint() -> dict[str, Any] | None:
    import ray.train
    import torch

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        loaded: dict[str, Any] = torch.load(Path(folder) / "checkpoint.pt", weights_only=True)
    return loaded


def _agree(rank: int, world_size: int, decide: Callable[[], str | None]) -> str | None:
    """Rank 0's decision, in every worker of the group."""
    if world_size == 1:
        return decide()
    import torch.distributed

    box = [decide() if rank == 0 else None]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]
