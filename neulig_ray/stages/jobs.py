"""Many small jobs as Ray tasks, each committing one artifact."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from neulig_ray.stages.artifact import Artifact
from neulig_ray.stages.cluster import Cluster
from neulig_ray.stages.progress import Reporter, Stage
from neulig_ray.stages.storage import Storage

Failures = dict[str, str]  # fingerprint -> what went wrong
Made = tuple[Mapping[str, bytes], Mapping[str, Any]]


class HasArtifact(Protocol):
    @property
    def artifact(self) -> Artifact: ...
    @property
    def inputs(self) -> tuple[Artifact, ...]: ...


J = TypeVar("J", bound=HasArtifact)


@dataclass(frozen=True)
class Job:
    """`make(storage, **arguments)` gives the files and the info of `artifact`; a module-level function."""

    artifact: Artifact
    make: Callable[..., Made]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[Artifact, ...] = ()

    def run(self, storage: Storage) -> None:
        if not storage.exists(self.artifact):
            files, info = self.make(storage, **self.arguments)
            storage.commit(self.artifact, files, info)


@dataclass(frozen=True)
class Resources:
    """Of one worker. Threads are the CPUs: fixed, so that the same command gives the same numbers."""

    cpus: int = 1
    gpus: float = 0.0
    max_failures: int = 3


def ensure(storage: Storage, jobs: Sequence[J], make: Callable[[list[J]], Failures]) -> Failures:
    """Have every job's artifact made once: what another driver is making is waited for, not made again."""
    failures: Failures = {}
    with ExitStack() as claims:
        mine, others = [], []
        for job in jobs:
            if storage.exists(job.artifact):
                continue
            granted = claims.enter_context(storage.claim(job.artifact, wait=False))
            if not granted:
                others.append(job)
            elif not storage.exists(job.artifact):
                mine.append(job)
        if mine:
            failures.update(make(mine))
    for job in others:
        with storage.claim(job.artifact, wait=True):
            if not storage.exists(job.artifact):
                failures.update(make([job]))
    return failures


def runnable(jobs: Sequence[J], failures: Failures) -> list[J]:
    """The jobs that can be tried. One whose input failed is added to `failures`, with the input's reason."""
    ready = []
    for job in jobs:
        broken = next((a for a in job.inputs if a.fingerprint in failures), None)
        if broken is None:
            ready.append(job)
        else:
            failures[job.artifact.fingerprint] = (
                f"{broken.kind} {broken.label}: {failures[broken.fingerprint]}"
            )
    return ready


def run_stage(
    name: str,
    jobs: Sequence[Job],
    storage: Storage,
    cluster: Cluster,
    resources: Resources,
    reporter: Reporter,
    failures: Failures,
) -> None:
    """Make what is missing of `jobs` on the cluster, adding to `failures` what could not be made.

    Lost workers and nodes are retried by Ray, `resources.max_failures` times for each job.
    """
    ready = runnable(jobs, failures)
    cached = sum(storage.exists(job.artifact) for job in ready)
    with reporter.stage(name, len(ready), cached) as stage:
        if cached == len(ready):
            return
        cluster.start()
        failures.update(ensure(storage, ready, lambda missing: _run(missing, storage, resources, stage)))


def _run(jobs: list[Job], storage: Storage, resources: Resources, stage: Stage) -> Failures:
    import ray

    execute = ray.remote(
        num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=resources.max_failures
    )(_execute)
    running = {execute.remote(job, storage, resources.cpus): job for job in jobs}
    failures: Failures = {}
    while running:
        for reference in ray.wait(list(running), num_returns=1)[0]:
            job = running.pop(reference)
            try:
                reason = ray.get(reference)
            except ray.exceptions.RayError as error:
                reason = f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
            if reason:
                failures[job.artifact.fingerprint] = reason
            stage.finished(job.artifact.label, reason or "", failed=bool(reason))
    return failures


def _execute(job: Job, storage: Storage, threads: int) -> str:
    """Run one job in a worker; the reason of a failure comes back as text, for the results' status."""
    import torch

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        job.run(storage)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
