"""Trainings on Ray Train: worker groups that take one training after another from a queue.

A Train run costs 10 s and more before its first step, so small trainings share one. Each is still its own
artifact, its own seed and its own failure; a lost worker, node or driver costs at most the epoch in hand.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from neulig_ray.cluster.cost import Sizes
from neulig_ray.cluster.jobs import Resources, ensure, runnable, told
from neulig_ray.cluster.progress import StageProgress
from neulig_ray.cluster.run_context import Failures, RunContext
from neulig_ray.cluster.train.groups import Groups
from neulig_ray.cluster.train.job import TrainJob
from neulig_ray.cluster.train.worker import NOTE
from neulig_ray.storage.artifact import fingerprint
from neulig_ray.storage.scratch import Scratch, scratch
from neulig_ray.storage.storage import Storage


def run_trainings(
    name: str,
    jobs: Sequence[TrainJob],
    context: RunContext,
    resources: Resources,
    sizes: Sizes,
    *,
    max_groups: int | None = None,
) -> None:
    """Make what is missing of `jobs`, the longest first, adding to the failures what could not be made."""
    storage, workers = context.storage, max((job.workers for job in jobs), default=1)
    jobs = runnable(jobs, context.failures)
    cached = sum(storage.exists(job.artifact) for job in jobs)
    with context.reporter.stage(name, len(jobs), cached) as stage:
        if cached == len(jobs):
            return
        context.cluster.start()
        # Named after the whole plan, not what is missing of it: the same command finds its checkpoints.
        run = f"train/{name}-{fingerprint([job.artifact.fingerprint for job in jobs])}"
        missing = [job for job in jobs if not storage.exists(job.artifact)]
        work = {job.artifact.fingerprint: job.cost(sizes).flops for job in missing}
        stage.weigh((job.artifact.label, work[job.artifact.fingerprint]) for job in missing)

        def slots() -> int:
            held = context.cluster.slots(cpus=resources.cpus, gpus=resources.gpus, workers=workers)
            return min(held, max_groups or len(jobs))

        with scratch(storage, run) as own:

            def make(mine: list[TrainJob]) -> Failures:
                ordered = sorted(mine, key=lambda job: -work[job.artifact.fingerprint])
                return _train(own, ordered, resources, workers, stage, slots)

            made = ensure(storage, jobs, make, stage)
            own.sweep(lambda folder: _made(storage, folder, jobs))
        context.failures.update(made)


def _train(
    own: Scratch,
    jobs: Sequence[TrainJob],
    resources: Resources,
    workers: int,
    stage: StageProgress,
    slots: Callable[[], int],
) -> Failures:
    """Train in this order. A queue that is killed (a head short of memory) is begun anew with the rest."""
    import ray

    failures: Failures = {}
    left = list(jobs)
    for attempt in itertools.count():
        first = attempt * len(jobs) * (resources.max_failures + 1)  # a folder of its own for every group
        groups = Groups(own.path, left, _left(own), own.storage, resources, workers, stage, first)
        try:
            groups.run(slots)
            return failures | groups.failures
        except ray.exceptions.RayError as error:
            failures |= groups.failures
            if attempt == resources.max_failures:
                raise
            stage.note("the queue", f"is begun again after {told(error)}")
            left = [job for job in left if job.artifact.fingerprint not in groups.finished]
            for job in [job for job in left if own.storage.exists(job.artifact)]:  # the queue could not tell
                left.remove(job)
                stage.finished(job.artifact.label, "found in the storage")
    raise AssertionError("the loop returns or raises")


def _left(own: Scratch) -> Mapping[str, list[str]]:
    """Training -> the groups' folders where this driver, or another, noted down that it is in hand."""
    found = defaultdict(list)
    for folder in (own.path, *own.others()):
        for group, training in _notes(own.storage, folder).items():
            found[training].append(group)
    return found


def _notes(storage: Storage, folder: str) -> dict[str, str]:
    prefix = len(storage.root) + 1
    paths = [info.path[prefix:] for info in storage.files(folder) if info.path.endswith(NOTE)]
    found = {}
    for path in paths:
        try:
            found[path.removesuffix(NOTE)] = storage.read(path).decode()
        except FileNotFoundError:  # its driver ended meanwhile
            continue
    return found


def _made(storage: Storage, folder: str, jobs: Sequence[TrainJob]) -> bool:
    """Whether all that a driver had in hand is made, so that nobody needs its checkpoints."""
    whole = {job.artifact.fingerprint for job in jobs if storage.exists(job.artifact)}
    return whole.issuperset(_notes(storage, folder).values())
