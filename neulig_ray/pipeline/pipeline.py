"""Runs the stages of a plan in their order; what is finished is kept, whatever happens."""

from collections.abc import Sequence
from typing import NamedTuple, cast

from neulig_ray.cluster.jobs import Job, Resources, run_jobs, told, unneeded
from neulig_ray.cluster.run_context import RunContext
from neulig_ray.cluster.session import Need
from neulig_ray.cluster.train.job import TrainJob
from neulig_ray.cluster.train.run import run_trainings
from neulig_ray.errors import StageError
from neulig_ray.pipeline.plan import Plan
from neulig_ray.pipeline.stages import STAGES, Stage, up_to


class StageCount(NamedTuple):
    """How many artifacts a stage has, and how many of them are stored."""

    stage: Stage
    planned: int
    stored: int

    @property
    def missing(self) -> int:
        return self.planned - self.stored


class Pipeline:
    """The stages of a plan. What failed, and why, stands in `context.failures`."""

    def __init__(self, plan: Plan, context: RunContext) -> None:
        self.plan = plan
        self.context = context

    def count(self, stages: Sequence[Stage] = STAGES) -> list[StageCount]:
        """How far stages have come, of those that make anything; asks the storage for every artifact."""
        counted = []
        storage = self.context.storage
        for stage in stages:
            jobs = stage.jobs(self.plan)
            missing = [job for job in jobs if not storage.exists(job.artifact)]
            needed = [job for job in missing if not unneeded(storage, job)]
            if planned := len(jobs) - len(missing) + len(needed):
                counted.append(StageCount(stage, planned, planned - len(needed)))
        return counted

    def run(self, command: str) -> None:
        """Run up to and with the stage that a command ends with; failed pieces do not stop their siblings.

        Raises InputError before anything is started for a damaged file of an origin or expert, for data that
        is not there and cannot be fetched, or for too small a cluster.
        """
        for stage in STAGES:
            for job in stage.jobs(self.plan):
                if prepare := getattr(job, "prepare", None):
                    prepare(self.context)
        stages = up_to(command)
        self.context.cluster.needs = [self._need(stage) for stage in stages]
        for stage in stages:
            try:
                self._run(stage)
            except Exception as error:
                if not type(error).__module__.startswith("ray."):
                    raise
                raise StageError(f"stage {stage.name!r}: Ray gave up: {told(error)}") from error

    def takes(self, stage: Stage) -> tuple[int, Resources]:
        """What one piece of a stage asks of the cluster at once: how many workers, and what each takes."""
        cluster = self.plan.experiment.cluster
        workers = max((getattr(job, "workers", 1) for job in stage.jobs(self.plan)), default=1)
        return workers, Resources(stage.cpus(cluster), stage.gpus(cluster), cluster.max_failures)

    def _need(self, stage: Stage) -> Need:
        count, each = self.takes(stage)
        what = f"stage {stage.name!r}" + (f" ({count} workers)" if count > 1 else "")
        return Need(what, count * each.cpus, count * each.gpus)

    def _run(self, stage: Stage) -> None:
        jobs, resources = stage.jobs(self.plan), self.takes(stage)[1]
        if not jobs:
            return
        if run := stage.runner():
            run(self.context, jobs, resources)
            return
        sizes = self.plan.sizes(self.context.storage)
        small = [job for job in jobs if isinstance(job, Job)]
        if small:
            order = sizes if stage.order == "longest first" else None
            run_jobs(stage.name, small, self.context, resources, longest_first=order)
        if trainings := [cast("TrainJob", job) for job in jobs if hasattr(job, "steps")]:
            most = self.plan.experiment.cluster.max_groups
            run_trainings(stage.name, trainings, self.context, resources, sizes, max_groups=most)
