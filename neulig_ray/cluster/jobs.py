"""Many small jobs on Ray, each committing one artifact."""

import abc
import gc
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from neulig_ray.cluster import ray_internals
from neulig_ray.cluster.cost import Cost, Sizes
from neulig_ray.cluster.progress import StageProgress
from neulig_ray.cluster.run_context import Failures, RunContext
from neulig_ray.redaction import redacted
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Files, Storage

JobOutput = tuple[Files, Mapping[str, Any]]  # the files of an artifact, and what its manifest says of them


class HasArtifact(Protocol):
    @property
    def artifact(self) -> Artifact: ...
    @property
    def inputs(self) -> tuple[Artifact, ...]: ...


class HasCost(HasArtifact, Protocol):
    def cost(self, sizes: Sizes) -> Cost: ...


J = TypeVar("J", bound=HasArtifact)


def unneeded(storage: Storage, job: HasArtifact) -> bool:
    """Whether an artifact that is missing is missed by nobody: all that it is `only_for` is there."""
    served: tuple[Artifact, ...] = getattr(job, "only_for", ())
    return bool(served) and all(map(storage.exists, served))


def is_done(storage: Storage, job: HasArtifact) -> bool:
    """Whether there is nothing to make for a job."""
    return storage.exists(job.artifact) or unneeded(storage, job)


@dataclass(frozen=True)
class Needs:
    """What a job takes beside its stage's CPUs. `gpu`: the stage's share of one, where that has any.

    `on_driver`: it reads files of the driver's node, and runs there.
    """

    gpu: bool = True
    on_driver: bool = False


class Job(abc.ABC):
    """One computation that makes one artifact. Subclasses are frozen dataclasses, which travel to workers."""

    artifact: Artifact

    @property
    def inputs(self) -> tuple[Artifact, ...]:
        """The artifacts without which it cannot run."""
        return ()

    @property
    def needs(self) -> Needs:
        return Needs()

    def cost(self, sizes: Sizes) -> Cost:
        """What it takes where its artifact is missing."""
        return Cost()

    @abc.abstractmethod
    def make(self, storage: Storage) -> JobOutput:
        """The artifact's files, and what its manifest says of them."""

    def run(self, storage: Storage) -> None:
        """Commit the artifact unless it is there."""
        if not storage.exists(self.artifact):
            files, info = self.make(storage)
            storage.commit(self.artifact, files, info)


@dataclass(frozen=True)
class Resources:
    """Of one worker. Below one CPU it shares it with others."""

    cpus: float = 1
    gpus: float = 0.0
    max_failures: int = 3

    @property
    def threads(self) -> int:
        return threads(self.cpus)


def threads(cpus: float) -> int:
    """Torch's threads are the whole CPUs: fixed, so that the same command gives the same numbers."""
    return max(1, int(cpus))


def ensure(
    storage: Storage,
    jobs: Sequence[J],
    make: Callable[[list[J]], Failures],
    stage: StageProgress | None = None,
) -> Failures:
    """Have every job's artifact made once: what another driver is making is waited for, not made again.

    `stage` is told of what others made.
    """
    failures: Failures = {}
    while missing := [j for j in jobs if j.artifact.fingerprint not in failures and not is_done(storage, j)]:
        with ExitStack() as claims:
            granted = [claims.enter_context(storage.claim(job.artifact, wait=False)) for job in missing]
            # Another driver may have made it and let go between the look and the claim.
            made = [is_done(storage, job) for job in missing]
            todo = [got and not whole for got, whole in zip(granted, made, strict=True)]
            if mine := [job for job, own in zip(missing, todo, strict=True) if own]:
                failures.update(make(mine))
                for job in mine:
                    if job.artifact.fingerprint not in failures and not is_done(storage, job):
                        failures[job.artifact.fingerprint] = "its job ended without it"
        others = [job for job, own in zip(missing, todo, strict=True) if not own]
        if stage is not None:
            stage.waits_for(len(others))
        if others:
            with storage.claim(others[0].artifact, wait=True):
                pass
        if stage is not None:
            for job in others:
                if is_done(storage, job):
                    stage.found(job.artifact.label)
    return failures


def told(error: BaseException) -> str:
    """An error in one line, for the status of results: its kind, and the line that says why."""
    error = ray_internals.cause(error)
    lines = str(error).strip().splitlines() or [""]
    reason = next((line for line in lines if ray_internals.LOW_MEMORY in line), lines[-1])
    return redacted(f"{type(error).__name__}: {reason.strip()}".removesuffix(": "))


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


def run_jobs(
    name: str,
    jobs: Sequence[Job],
    context: RunContext,
    resources: Resources,
    *,
    longest_first: Sizes | None = None,
) -> None:
    """Make what is missing of `jobs` on the cluster, adding to the failures what could not be made.

    `longest_first`: sizes by which jobs are ordered and the time that is left is told. Lost workers and nodes
    are retried by Ray, `resources.max_failures` times for each job.
    """
    storage = context.storage
    jobs = [job for job in jobs if storage.exists(job.artifact) or not unneeded(storage, job)]
    if not jobs:
        return
    ready = runnable(jobs, context.failures)
    cached = sum(is_done(storage, job) for job in ready)
    with context.reporter.stage(name, len(ready), cached) as stage:
        if cached == len(ready):
            return
        context.cluster.start()
        stage.slots = context.cluster.slots(cpus=resources.cpus, gpus=resources.gpus)
        if longest_first is not None:
            work = {
                job.artifact.fingerprint: job.cost(longest_first).flops
                for job in ready
                if not is_done(storage, job)
            }
            ready.sort(key=lambda job: -work.get(job.artifact.fingerprint, 0.0))
            stage.weigh((job.artifact.label, work.get(job.artifact.fingerprint, 0.0)) for job in ready)
        made = ensure(storage, ready, lambda missing: _run(missing, storage, resources, stage), stage)
        context.failures.update(made)


def _run(jobs: list[Job], storage: Storage, resources: Resources, stage: StageProgress) -> Failures:
    import ray

    alone = ray.remote(num_cpus=resources.cpus, max_retries=resources.max_failures)(_execute)
    keeper = ray.remote(
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        max_restarts=-1,
        max_task_retries=resources.max_failures,
    )(_Keeper)
    left = deque(job for job in jobs if _keeps(job, resources))
    waiting: dict[Any, tuple[Job | None, Any]] = {}  # what Ray is at -> its job, and the worker that keeps on
    for worker in [keeper.remote() for _ in range(min(len(left), _KEEPERS * stage.slots))]:
        waiting[ray_internals.ready(worker)] = (None, worker)
    for job in [job for job in jobs if not _keeps(job, resources)]:
        place = _on_driver(alone, resources) if job.needs.on_driver else alone
        waiting[place.remote(job, storage, resources.threads)] = (job, None)
    failures: Failures = {}

    def ended(job: Job, reason: str) -> None:
        if reason:
            failures[job.artifact.fingerprint] = reason
        stage.finished(job.artifact.label, reason, failed=bool(reason))

    reason = ""
    while any(job for job, _ in waiting.values()) or (left and waiting):
        [reference] = ray.wait(list(waiting), num_returns=1)[0]
        done, worker = waiting.pop(reference)
        try:
            found = ray.get(reference)
            reason = found if done is not None else ""
        except ray.exceptions.RayError as error:
            reason = f"{told(error)} (tried {resources.max_failures + 1} times)"
        if done is not None:
            ended(done, reason)
        elif reason:
            continue  # a worker that never came up
        if worker is not None and left:
            following = left.popleft()
            waiting[worker.execute.remote(following, storage, resources.threads)] = (following, worker)
        elif worker is not None:
            ray.kill(worker)
    for _, worker in waiting.values():  # those that no job waited for
        ray.kill(worker)
    for job in left:
        ended(job, f"no worker came up: {reason}")
    return failures


_KEEPERS: Final = 2  # workers asked for, to each that the cluster has room for: it may grow


def _keeps(job: Job, resources: Resources) -> bool:
    """Whether a job runs on a worker that goes on to the next one.

    Ray gives each task with a GPU a process of its own, which imports torch anew: seconds, for jobs that take
    seconds. An actor keeps its process, and its GPU.
    """
    return bool(resources.gpus) and job.needs.gpu and not job.needs.on_driver


class _Keeper:
    """Runs jobs one after the other on the GPU that it was given."""

    def execute(self, job: Job, storage: Storage, threads: int) -> str:
        import torch

        try:
            return _execute(job, storage, threads)
        finally:
            gc.collect()
            torch.cuda.empty_cache()  # else what the last job had would not look free to the next


def _on_driver(execute: Any, resources: Resources) -> Any:
    """The remote function bound to this node. A head node that offers no CPUs runs it all the same."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    cpus = next((n["Resources"].get("CPU", 0) for n in ray.nodes() if n["NodeID"] == here), 0)
    return execute.options(
        num_cpus=resources.cpus if cpus >= resources.cpus else 0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
    )


def _execute(job: Job, storage: Storage, threads: int) -> str:
    """Run one job in a worker; the reason of a failure comes back as text, for the results' status."""
    from neulig_ray.cluster.device import use_processor

    use_processor(threads)
    try:
        job.run(storage)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
